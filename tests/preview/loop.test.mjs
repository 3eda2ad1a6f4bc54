// What a moving preview shows when, without a page: `node --test tests/preview/`.
import assert from "node:assert/strict";
import { test } from "node:test";

import { FRAMES_PER_SECOND, captionOf, frameAt, modeOf, partOf } from "../../js/preview/loop.js";
import { nodeOf } from "../../js/nodes.js";
import { LOCALES, wordsOf } from "../../js/preview/words.js";

const MESSAGE = {
  node: "3", prompt_id: "p", graph: null, picture: "", frames: 5, columns: 3, width: 16, height: 12, latent_frames: 5,
  clips: 1, step: 4, steps: 30, segment: 1, segments: 1,
};

test("a loop shows every frame in its turn and begins again", () => {
  const shown = Array.from({ length: 12 }, (_, n) => frameAt(((n + 0.5) * 1000) / FRAMES_PER_SECOND, MESSAGE, "loop"));
  assert.deepEqual(shown, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]);
  assert.equal(frameAt(123456, MESSAGE, "first"), 0);
  assert.equal(frameAt(123456, { ...MESSAGE, frames: 1 }, "loop"), 0);
});

test("frames lie in reading order, and the sheet is all of them", () => {
  assert.deepEqual(partOf(4, MESSAGE, "loop"), { x: 16, y: 12, width: 16, height: 12 });
  assert.deepEqual(partOf(0, MESSAGE, "sheet"), { x: 0, y: 0, width: 48, height: 24 });
});

test("a setting that says nothing known is the loop", () => {
  assert.deepEqual(["off", "sheet", "first", "loop", "?", undefined].map(modeOf), ["off", "sheet", "first", "loop", "loop", "loop"]);
});

test("the caption names segment and clip where there are several", () => {
  assert.equal(captionOf(MESSAGE, wordsOf("en")), "step 4 of 30 · 5 latent frames");
  const many = { ...MESSAGE, segment: 2, segments: 3, clips: 4 };
  assert.equal(captionOf(many, wordsOf("en")), "step 4 of 30 · segment 2 of 3 · clip 1 of 4 · 5 latent frames");
  assert.equal(LOCALES.length, 9);
  for (const locale of LOCALES) {
    const caption = captionOf(many, wordsOf(locale));
    assert.deepEqual(caption.match(/\d+/g), ["4", "30", "2", "3", "1", "4", "5"], caption);
  }
  assert.equal(wordsOf("de-AT"), wordsOf("de"));
  assert.equal(wordsOf("tlh"), wordsOf("en"));
});

test("a node is found by its number, inside others as well", () => {
  const graphOf = (nodes) => ({ getNodeById: (id) => nodes[id] ?? null });
  const inner = { id: 5 };
  const root = graphOf({ 3: { id: 3 }, 9: { id: 9, subgraph: graphOf({ 5: inner }) } });
  assert.deepEqual(nodeOf("3", root), { id: 3 });
  assert.equal(nodeOf("9:5", root), inner);
  assert.equal(nodeOf("9:6", root), null);
  assert.equal(nodeOf("4:1", root), null);
  assert.equal(nodeOf("4", undefined), null);
});
