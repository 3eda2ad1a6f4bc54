// Where spans land, what a drag makes of them, and what lies under the pointer: without a page.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { boxOf, dragged, gripAt, hit, keyed, marks } from "../../js/timeline/geometry.js";
import { DEFAULTS } from "../../js/timeline/plan.js";
import { cellOf } from "../../js/timeline/pictures.js";
import { RELEASES, UNKNOWN, latentsOf, overlapping, overwritten, rulesOf, spanOf } from "../../js/timeline/rules.js";
import { KNOWN, wordsOf } from "../../js/timeline/words.js";

const CASES = JSON.parse(readFileSync(new URL("cases.json", import.meta.url), "utf8"));

test("the page's releases are the machine's", () => {
  assert.deepEqual(RELEASES.map((rules) => rules.id), CASES.releases.map((release) => release.id));
  for (const { id, title, align, editable, anywhere, frames, starts } of CASES.releases) {
    const rules = rulesOf(id);
    assert.deepEqual([rules.title, rules.align, rules.editable, rules.anywhere], [title, align, editable, anywhere]);
    frames.forEach((count, at) => assert.equal(rules.frames(at + 1), count, `${id}: ${at + 1}`));
    starts.forEach((frame, latent) => frame === null || assert.equal(rules.frameOf(latent), frame, `${id}: ${latent}`));
    assert.equal(latentsOf(rules, frames[14]), 15);
  }
});

test("spans land where the machine puts them, with its sentences", () => {
  for (const { references, lengths, clip, align, spans, overlap, notes } of CASES.placed) {
    const rules = { ...UNKNOWN, align };
    const found = references.map((place, entry) => spanOf(place, entry, lengths[place.reference], clip, rules));
    assert.deepEqual(found.map((span) => [span.reference, span.source, span.target, span.length]), spans);
    assert.deepEqual(overlapping(found), overlap);
    assert.deepEqual(found.flatMap((span) => span.notes), notes.filter((note) => !note.startsWith("References overlap")));
  }
});

test("what cannot be used says why", () => {
  const late = spanOf({ ...DEFAULTS, at: 30 }, 0, 1, 20, UNKNOWN);
  assert.equal(late.problem, "Latent frame 30 lies outside the clip of 20 latent frames; the nearest good value is 19.");
  assert.equal(late.target, 19);
  assert.match(spanOf({ ...DEFAULTS, strength: 0.3 }, 0, 1, 9, rulesOf("2.0")).problem, /^Open-Sora 2.0 has one time/);
});

const TRACK = { clip: 20, width: 400, height: 100 };

function after(place, grip, right, down, rules = UNKNOWN) {
  return dragged(place, spanOf(place, 0, 20, TRACK.clip, rules), grip, right, down, TRACK, rules);
}

test("a drag moves, resizes, and changes the strength", () => {
  const place = { ...DEFAULTS, at: 4, length: 3 };
  assert.deepEqual(after(place, "move", 41, 9), { at: 6 });
  assert.deepEqual(after(place, "move", 5, 0), {});
  assert.deepEqual(after(place, "move", 9999, 0), { at: 19 });
  assert.deepEqual(after(place, "move", 40, 0, rulesOf("1.2")), { at: 5 });
  assert.deepEqual(after({ ...place, at: -4 }, "move", 20, 0), { at: -3 });
  assert.deepEqual(after(place, "end", 40, 0), { length: 5 });
  assert.deepEqual(after(place, "end", -9999, 0), { length: 1 });
  assert.deepEqual(after({ ...place, from: 2 }, "start", -20, 0), { at: 3, length: 4, from: 1 });
  assert.deepEqual(after({ ...place, from: 1 }, "start", -9999, 0), { at: 3, length: 4, from: 0 });
  assert.deepEqual(after(place, "strength", 0, 43), { strength: 0.5 });
  assert.deepEqual(after(place, "strength", 0, -43), {});
});

test("keys do the same in steps of a frame or a group", () => {
  const place = { ...DEFAULTS, at: 5, length: 5 };
  const press = (key, shift, rules) => keyed(place, spanOf(place, 0, 20, 20, rules), key, shift, 20, rules);
  assert.deepEqual(press("ArrowRight", false, UNKNOWN), { at: 6 });
  assert.deepEqual(press("ArrowRight", false, rulesOf("1.2")), { at: 10 });
  assert.deepEqual(press("ArrowLeft", true, UNKNOWN), { length: 4 });
  assert.deepEqual(press("ArrowDown", false, UNKNOWN), { strength: 0.01 });
  assert.deepEqual(press("ArrowDown", true, UNKNOWN), { strength: 0.1 });
  assert.deepEqual(press("ArrowDown", true, rulesOf("2.0")), {});
});

test("later spans lie on top, and every span has a middle to move it by", () => {
  const spans = [
    spanOf({ ...DEFAULTS, length: 10 }, 0, 10, 20, UNKNOWN),
    spanOf({ ...DEFAULTS, at: 5, strength: 0.5 }, 1, 1, 20, UNKNOWN),
  ];
  const boxes = spans.map((span) => boxOf(span, TRACK));
  assert.deepEqual([hit(boxes, 105, 90), hit(boxes, 105, 10), hit(boxes, 250, 50)], [1, 0, -1]);
  assert.equal(gripAt(boxes[0], 1, 50, true), "start");
  assert.equal(gripAt(boxes[0], 198, 50, true), "end");
  assert.equal(gripAt(boxes[0], 100, 2, true), "strength");
  assert.equal(gripAt(boxes[0], 100, 2, false), "move");
  assert.equal(gripAt({ left: 0, top: 0, width: 6, height: 90 }, 3, 50, true), "move");
});

test("marks on the ruler stay apart", () => {
  assert.deepEqual(marks({ clip: 20, width: 400, height: 0 }), [0, 5, 10, 15]);
  assert.ok(marks({ clip: 1000, width: 400, height: 0 }).length <= 10);
});

test("what later spans write over is told for each span", () => {
  const span = (target, length, problem = "") => ({ target, length, problem });
  assert.deepEqual(overwritten([span(0, 10), span(2, 2), span(3, 3), span(9, 4), span(0, 9, "cannot")]), [
    [[2, 4], [9, 1]], [[3, 1]], [], [], [],
  ]);
  for (const { references, lengths, clip, align, overlap } of CASES.placed) {
    const found = references.map((place, entry) => spanOf(place, entry, lengths[place.reference], clip, { ...UNKNOWN, align }));
    const frames = overwritten(found).flat().flatMap(([start, length]) => [...Array(length).keys()].map((at) => start + at));
    assert.deepEqual([...new Set(frames)].sort((a, b) => a - b), overlap);
  }
});

test("a latent frame has the cell of its moment", () => {
  assert.deepEqual([0, 2, 4, 9].map((source) => cellOf([10, 5], source, 5)), [10, 12, 14, 14]);
  assert.deepEqual([0, 50, 99].map((source) => cellOf([0, 10], source, 100)), [0, 5, 9]);
  assert.equal(cellOf([7, 1], 0, 1), 7);
});

test("every language says everything", () => {
  const english = Object.keys(wordsOf("en"));
  for (const language of KNOWN) {
    assert.deepEqual(Object.keys(wordsOf(language)), english);
    assert.ok(Object.values(wordsOf(language)).every((words) => words.trim()));
  }
  assert.equal(wordsOf("tlh"), wordsOf("en"));
});
