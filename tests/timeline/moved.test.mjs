// Pictures that get other numbers when the page closes a gap: `node --test tests/timeline/`.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Moved } from "../../js/timeline/moved.js";

const [A, B, C] = ["1 0", "2 0", "3 0"];
const THREE = { picture0: A, picture1: B, picture2: C };

/** What is said of sockets that hold these, one look after the other. */
const seen = (...looks) => {
  const moved = new Moved();
  return looks.map(([wires, text]) => moved.look(wires, text ?? "plan"));
};

test("a gap that is closed is noticed, in one step or in two, and until the plan is changed", () => {
  const up = "picture1 → picture0, picture2 → picture1";
  const closed = { picture0: B, picture1: C };
  assert.deepEqual(seen([THREE], [closed], [closed], [closed, "other"], [closed]), ["", up, up, "", ""]);
  assert.deepEqual(seen([THREE], [{ picture1: B, picture2: C }], [closed]), ["", "", up]);
  assert.deepEqual(seen([THREE], [{ picture0: A, picture1: C }]), ["", "picture2 → picture1"]);
});

test("what moves no picture is not said", () => {
  assert.deepEqual(seen([{}], [THREE]), ["", ""], "wires that come");
  assert.deepEqual(seen([THREE], [{ picture0: A, picture1: B }]), ["", ""], "the last one goes");
  assert.deepEqual(seen([THREE], [{ ...THREE, picture0: B }]), ["", ""], "one picture at two sockets");
  assert.deepEqual(seen([{ picture0: A, picture1: A }], [{ picture0: A }]), ["", ""], "the same at the next one");
});
