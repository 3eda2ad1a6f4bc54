// The page's reading of a plan against the machine's: one list of cases, `node --test tests/timeline/`.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { addPrompt, addReference, changePrompt, changeReference, removeEntry } from "../../js/timeline/edit.js";
import { DEFAULTS, PlanError, formatPlan, parsePlan } from "../../js/timeline/plan.js";

const CASES = JSON.parse(readFileSync(new URL("cases.json", import.meta.url), "utf8"));
const planOf = ({ references, prompts, notation }) => ({ references, prompts, notation });

test("every way to write a plan is read and written as the machine does", () => {
  assert.ok(CASES.good.length >= 200);
  for (const found of CASES.good) {
    const plan = parsePlan(found.text);
    assert.deepEqual(plan, planOf(found), found.text);
    assert.equal(formatPlan(plan), found.canonical);
    assert.deepEqual(parsePlan(found.canonical), plan);
  }
});

test("wrong texts are refused with the machine's sentence", () => {
  for (const { text, sentence } of CASES.wrong) {
    assert.throws(() => parsePlan(text), (error) => {
      assert.ok(error instanceof PlanError, `${text}: ${error}`);
      if (sentence !== null) assert.equal(error.message, sentence);
      return true;
    });
  }
  assert.throws(() => parsePlan('{"a":'.repeat(20000)), PlanError);
});

/** What two texts do not share, from the first to the last other sign. */
function changedPart(before, after) {
  let start = 0;
  while (start < before.length && before[start] === after[start]) start += 1;
  let end = 0;
  while (end < Math.min(before.length, after.length) - start && before.at(-1 - end) === after.at(-1 - end)) end += 1;
  return before.slice(start, before.length - end);
}

test("an edit changes its own entry and not a sign of the rest", () => {
  for (const found of CASES.good) {
    found.references.forEach((place, number) => {
      const fields = { at: place.at + 7, strength: place.strength === 0.25 ? 0.5 : 0.25 };
      const edited = changeReference(found.text, number, fields);
      const wanted = planOf(found);
      wanted.references = wanted.references.map((each, at) => (at === number ? { ...each, ...fields } : each));
      assert.deepEqual(parsePlan(edited), wanted, found.text);
      assert.ok(!/[;[\]]/.test(changedPart(found.text, edited).replace(/\]?\s*$/, "")), found.text);
      assert.equal(changeReference(found.text, number, { at: place.at }), found.text);
    });
    found.prompts.forEach((prompt, number) => {
      const edited = changePrompt(found.text, number, { text: 'new "words"' });
      assert.equal(parsePlan(edited).prompts[number].text, 'new "words"');
      assert.deepEqual(parsePlan(edited).references, found.references);
    });
  }
});

test("a large object is read in no time", () => {
  const many = JSON.stringify(Object.fromEntries(Array.from({ length: 50000 }, (_, number) => [`name${number}`, number])));
  const start = performance.now();
  assert.throws(() => parsePlan(many), PlanError);
  assert.ok(performance.now() - start < 5000);
});

test("entries are added and removed", () => {
  for (const found of CASES.good) {
    const added = addReference(found.text, { reference: 3, at: 9 });
    const plan = parsePlan(added);
    assert.deepEqual(plan.references, [...found.references, { ...DEFAULTS, reference: 3, at: 9 }], found.text);
    assert.deepEqual(parsePlan(removeEntry(added, "references", found.references.length)).references, found.references);
    found.references.forEach((_, number) => {
      const rest = found.references.filter((_, at) => at !== number);
      assert.deepEqual(parsePlan(removeEntry(found.text, "references", number)).references, rest, found.text);
    });
    const segment = found.prompts.length ? 50 : 0;
    const spoken = parsePlan(addPrompt(found.text, { segment, text: "later" }));
    assert.deepEqual(spoken.prompts, [...found.prompts, { segment, text: "later" }]);
    assert.deepEqual(spoken.references, found.references);
  }
});

test("the format of an entry's neighbours is taken up", () => {
  const text = '{\n  "references": [\n    {"at": 1},\n    {"at": 2}\n  ]\n}';
  assert.equal(
    addReference(text, { at: 3 }),
    '{\n  "references": [\n    {"at": 1},\n    {"at": 2},\n' +
      '    {"reference": 0, "at": 3, "length": 1, "from": 0, "strength": 0, "segment": 0}\n  ]\n}',
  );
  assert.equal(changeReference(text, 0, { length: 4 }), text.replace('{"at": 1}', '{"at": 1, "length": 4}'));
  assert.equal(changeReference("0; 0,1,0, 4", 1, { at: 5 }), "0; 0,1,0, 5");
  assert.equal(changeReference("0;0,1", 0, { strength: 0.5 }), "0,0,0,0,1,0.5;0,1");
});
