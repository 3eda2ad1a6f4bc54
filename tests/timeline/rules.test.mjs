// Where spans land, what a drag makes of them, and what lies under the pointer: without a page.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { boxOf, dragged, gripAt, hit, keyed, marks, outlineOf } from "../../js/timeline/geometry.js";
import { duplicate } from "../../js/timeline/clipboard.js";
import { changeReference } from "../../js/timeline/edit.js";
import { DEFAULTS, parsePlan } from "../../js/timeline/plan.js";
import { cellOf } from "../../js/timeline/pictures.js";
import { RELEASES, UNKNOWN, latentsOf, overwritten, rulesOf, spanOf } from "../../js/timeline/rules.js";
import { beforeElement, unconnected } from "../../js/timeline/spans.js";
import { overlapping, together } from "../../js/timeline/together.js";
import { KNOWN, wordsOf } from "../../js/timeline/words.js";

const CASES = JSON.parse(readFileSync(new URL("cases.json", import.meta.url), "utf8"));

test("the page's releases are the machine's", () => {
  assert.deepEqual(RELEASES.map((rules) => rules.id), CASES.releases.map((release) => release.id));
  for (const { id, title, align, editable, anywhere, takes, first, frames, starts } of CASES.releases) {
    const rules = rulesOf(id);
    assert.deepEqual([rules.title, rules.align, rules.editable, rules.anywhere], [title, align, editable, anywhere]);
    assert.deepEqual([rules.takes, rules.first], [takes, first]);
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
    assert.deepEqual([...found.flatMap((span) => span.notes), ...together(found, clip, rules).notes], notes);
  }
});

test("before a run the page says what a run will say of all spans together", () => {
  for (const { release, references, lengths, clip, notes, refused } of CASES.used) {
    const rules = rulesOf(release);
    const found = references.map((place, entry) => spanOf(place, entry, lengths[place.reference], clip, rules));
    const said = together(found, clip, rules);
    assert.equal(said.problem, refused);
    if (!refused) assert.deepEqual([...found.flatMap((span) => span.notes), ...said.notes], notes);
  }
  assert.ok(CASES.used.some(({ notes }) => notes.some((note) => note.startsWith("An experiment: "))));
  assert.ok(CASES.used.some(({ refused }) => refused.startsWith("The references fill all ")));
});

test("a number without a picture is refused before a run", () => {
  assert.equal(unconnected(3, null), "");
  assert.equal(unconnected(3, [1, 3]), "");
  assert.equal(unconnected(0, []), "The plan asks for reference 0, but no picture is connected; connect at least 1.");
  assert.match(unconnected(5, [0, 2, 9]), /nothing is connected to picture5; the nearest good value is 2\.$/);
});

test("what cannot be used says why", () => {
  const late = spanOf({ ...DEFAULTS, at: 30 }, 0, 1, 20, UNKNOWN);
  assert.equal(
    late.problem,
    "Latent frame 30, where reference 0 is to start, lies outside the clip of 20 latent frames; the nearest good value " +
      "is 19.",
  );
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
  assert.deepEqual(after({ ...place, at: -4 }, "start", 20, 0), { at: -3, length: 2, from: 1 });
  assert.deepEqual(after({ ...place, from: -3 }, "start", 20, 0), { at: 5, length: 2, from: -2 });
  assert.deepEqual(after({ ...place, from: 18 }, "end", 100, 0), { length: 2 }, "no longer than the reference");
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

test("any drag leaves a good plan, which is used as it is drawn", () => {
  let seed = 25;
  const random = (low, high) => low + Math.floor(((seed = (seed * 48271) % 2147483647) / 2147483647) * (high - low + 1));
  for (let round = 0; round < 3000; round++) {
    const [clip, available] = [random(1, 40), random(1, 20)];
    const rules = [UNKNOWN, ...RELEASES][random(0, RELEASES.length)];
    const place = {
      ...DEFAULTS, at: random(-clip - 2, clip + 2), length: random(1, 30), from: random(-available - 2, available + 2),
      strength: rules.editable ? random(0, 100) / 100 : 0,
    };
    const span = spanOf(place, 0, random(0, 3) ? available : undefined, clip, rules);
    const grip = ["move", "start", "end", "strength"][random(0, rules.editable ? 3 : 2)];
    const fields = dragged(place, span, grip, random(-900, 900), random(-200, 200), { ...TRACK, clip }, rules);
    const dropped = { ...place, ...fields };
    const text = changeReference('{"references": [{}]}', 0, dropped);
    assert.deepEqual(parsePlan(text).references[0], dropped);
    if (span.problem || !Object.keys(fields).length) continue;
    const used = spanOf(dropped, 0, available, clip, rules);
    const where = JSON.stringify({ place, grip, fields, clip, available, rules: rules.id });
    if (span.room < Infinity) assert.equal(used.problem, "", where);
    assert.ok(used.target + used.length <= clip, where);
    if (grip === "start" && span.room < Infinity) {
      assert.equal(used.target + used.length, span.target + span.length, where);
      assert.equal(used.source - span.source, used.target - span.target, where);
    }
  }
});

test("a copy lies behind its original, and inside the clip", () => {
  const copied = (place) => duplicate({ ...DEFAULTS, ...place }, spanOf({ ...DEFAULTS, ...place }, 0, 9, 20, UNKNOWN), 20).at;
  assert.deepEqual([copied({ at: 3, length: 4 }), copied({ at: 18, length: 4 }), copied({ at: -1 }), copied({ at: -9 })], [7, 19, -1, -8]);
});

test("marks on the ruler stay apart", () => {
  assert.deepEqual(marks({ clip: 20, width: 400, height: 0 }), [0, 5, 10, 15]);
  assert.ok(marks({ clip: 1000, width: 400, height: 0 }).length <= 10);
});

test("a reference of the chain is as high in each frame as a span of that strength", () => {
  const track = { clip: 10, width: 400, height: 64 };
  const tops = [0, 0.5, 1].map((strength) => boxOf({ target: 0, length: 1, strength }, track).top);
  assert.deepEqual(tops, [0, 25, 50]);
  assert.equal(
    outlineOf([0, 0.5], 64),
    `polygon(0% 64px, 0% ${tops[0]}px, 50% ${tops[0]}px, 50% ${tops[1]}px, 100% ${tops[1]}px, 100% 64px)`,
  );
});

test("a reference of the chain says its strengths, and none where it is kept or nobody knows", () => {
  const size = { clip: 10, width: 400, height: 64 };
  const made = () => ({ style: {}, children: [], append(child) { this.children.push(child); } });
  globalThis.document = { createElement: made };
  try {
    const drawn = (strengths) => beforeElement({ loop: 0, target_start: -5, length: 5, strengths }, size, "Chain.");
    const rising = drawn([0, 0.25, 0.5, 0.75, 1]);
    assert.deepEqual([rising.style.left, rising.style.width], ["50%", "50%"]);
    assert.deepEqual([rising.title, rising.children[0].textContent], ["Chain. 0 → 1", "0 → 1"]);
    assert.equal(rising.style.clipPath, outlineOf([0, 0.25, 0.5, 0.75, 1], 64));
    assert.equal(drawn([0.3, 0.3]).title, "Chain. 0.3");
    for (const plain of [drawn([0, 0, 0]), drawn(undefined)]) {
      assert.deepEqual([plain.title, plain.children, plain.style.clipPath], ["Chain.", [], undefined]);
    }
  } finally {
    delete globalThis.document;
  }
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
