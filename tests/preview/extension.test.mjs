// In which tab a clip moves: `node --test tests/preview/`.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Page } from "./page.mjs";

const element = () => ({ append() {}, remove() {}, setAttribute() {}, dataset: {} });
globalThis.document = { getElementById: element, createElement: element };
globalThis.Image = EventTarget;
globalThis.requestAnimationFrame = () => 1;
globalThis.cancelAnimationFrame = () => {};

test("a clip of a template that is open twice moves in the one that runs", async () => {
  const page = await new Page().start("preview/extension.js");
  const [one, two] = [await page.open("a.json", "id"), await page.open("a (2).json", "id")];
  await page.look(one);
  const run = page.queue();
  await page.asked;
  const seen = () => {
    for (const node of page.inSight.nodes.values()) {
      node.addDOMWidget = (name) => (node.widgets.push({ name }), node.widgets.at(-1));
    }
    page.tell("opensora.preview", {
      node: "1", prompt_id: run, graph: "id", picture: "", frames: 1, columns: 1, width: 8, height: 8, latent_frames: 1,
      clips: 1, step: 1, steps: 2, segment: 1, segments: 1,
    });
    return [...page.inSight.nodes.values()].flatMap(({ widgets }) => widgets.map(({ name }) => name));
  };
  await page.look(two);
  assert.deepEqual(seen(), []);
  await page.look(one);
  assert.deepEqual(seen(), ["opensora_preview"]);
});
