// Which workflow's node a text belongs to, and how long it stays: `node --test tests/preview/`.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Page } from "./page.mjs";

const TOLD = "told.js";
const ID = "the id in the template's file";

async function opened(...paths) {
  for (const name of ["opensora.told", "opensora.runs"]) sessionStorage.removeItem(name);
  const page = await new Page().start(TOLD);
  const tabs = [];
  for (const path of paths) tabs.push(await page.open(path, ID));
  return { page, tabs };
}

test("a text of a template that is open twice belongs to the one that ran", async () => {
  const { page, tabs: [one, two] } = await opened("a.json", "a (2).json");
  await page.look(one);
  const run = page.queue();
  await page.look(two);
  await page.run({ 1: "true" }, run);
  assert.deepEqual(page.said(), []);
  await page.look(one);
  assert.deepEqual(page.said(), ["1 true"]);
  const silent = page.queue();
  await page.look(two);
  await page.run({ 1: "of the second" });
  await page.run({ 1: "" }, silent);
  assert.deepEqual(page.said(), ["1 of the second"]);
  await page.look(one);
  assert.deepEqual(page.said(), []);
});

test("it does so before the server has answered, and where the page was loaded again meanwhile", async () => {
  const { page, tabs: [one, two] } = await opened("a.json", "a (2).json");
  await page.look(one);
  const run = page.queue(); // not answered yet
  await page.look(two);
  page.begin(run);
  page.node(run, "1", "early");
  await page.end(run);
  assert.deepEqual(page.said(), []);
  await page.look(one);
  assert.deepEqual(page.said(), ["1 early"]);

  const late = page.queue();
  await page.look(two);
  page.begin(late);
  await page.quiet();
  const again = await page.reload(TOLD);
  again.node(late, "2", "late");
  await again.end(late);
  assert.deepEqual(again.said(), []);
  await again.look(again.tabs[0]);
  assert.deepEqual(again.said(), ["2 late"]);
});

test("a run may end before the page has read that it was taken", async () => {
  const { page, tabs: [one, two] } = await opened("a.json", "a (2).json");
  await page.look(one);
  await page.run({ 1: "old" });
  let answer;
  const run = page.queue(new Promise((go) => (answer = go)));
  await page.look(two);
  page.begin(run);
  page.node(run, "1", "");
  await page.end(run);
  answer();
  await page.asked;
  await page.quiet();
  assert.deepEqual(page.said(), []);
  await page.look(one);
  assert.deepEqual(page.said(), []);
});

test("a tab that the page has opened again and not loaded yet keeps what its run says", async () => {
  const { page, tabs: [one] } = await opened("a.json", "a (2).json");
  await page.look(one);
  const run = page.queue();
  await page.asked;
  page.begin(run);
  await page.look(page.tabs[1]);
  const again = await page.reload(TOLD);
  const [behind] = again.tabs;
  const loaded = { changeTracker: behind.changeTracker, activeState: behind.activeState };
  Object.assign(behind, { changeTracker: null, activeState: null });
  again.node(run, "2", "late");
  await again.end(run);
  Object.assign(behind, loaded);
  await again.look(behind);
  assert.deepEqual(again.said(), ["2 late"]);
});

for (const [happens, change] of [
  ["renamed", async (page, tab) => { tab.path = "other.json"; }],
  ["closed", (page, tab) => page.close(tab)],
]) {
  test(`a tab that is ${happens} after the page was loaded again gives its text to no other`, async () => {
    const { page, tabs: [one] } = await opened("a.json", "a (2).json");
    await page.look(one);
    const run = page.queue();
    await page.asked;
    page.begin(run);
    const again = await page.reload(TOLD);
    const [of, twin] = again.tabs;
    await again.look(twin);
    await change(again, of);
    again.node(run, "1", "true");
    await again.end(run);
    assert.deepEqual(again.said(), []);
    if (happens === "closed") return;
    await again.look(of);
    assert.deepEqual(again.said(), ["1 true"]);
  });
}

test("what the next run says outlives the late end of one that nobody knows", async () => {
  const { page } = await opened("a.json");
  await page.run({ 1: "old" });
  let answer;
  page.api.fetchApi = async () => {
    await new Promise((go) => (answer = go));
    return { ok: true, json: async () => ({ workflow_id: ID }) };
  };
  page.begin("of another window");
  page.node("of another window", "1", "");
  await page.end("of another window");
  await page.run({ 1: "true" });
  answer();
  await page.quiet();
  assert.deepEqual(page.said(), ["1 true"]);
});

test("queueing gives what it gave before, or fails as it did", async () => {
  for (const given of [undefined, { prompt_id: "p", node_errors: { 1: {} } }]) {
    const page = new Page();
    page.api.queuePrompt = () => given; // of another extension, and no promise
    await page.start(TOLD);
    await page.open("a.json", ID);
    assert.equal(await page.api.queuePrompt(0, { workflow: { id: ID } }), given);
  }
  const { page } = await opened("a.json");
  page.answer = async () => { throw new Error("refused"); };
  await assert.rejects(page.api.queuePrompt(0, { workflow: { id: ID } }), /refused/);
});

test("runs that ended, or were taken off the queue, are not kept", async () => {
  const { page } = await opened("a.json");
  const kept = () => {
    for (const leave of page.left) leave();
    return JSON.parse(sessionStorage.getItem("opensora.runs") ?? "[]").length;
  };
  for (let number = 0; number < 3; number += 1) {
    page.queue();
    await page.asked;
  }
  assert.equal(kept(), 3);
  await page.run({});
  assert.equal(kept(), 3);
  page.tell("status", { exec_info: { queue_remaining: 0 } });
  assert.equal(kept(), 0);
});

test("what a node said before the page was loaded again stays when its run ends, and what others said", async () => {
  const { page, tabs: [one] } = await opened("a.json");
  const other = await page.open("other.json", "another id");
  await page.run({ 1: "in another tab", 2: "so too" });
  await page.look(one);
  await page.run({ 1: "of the run before", 2: "also" });
  const run = page.queue();
  await page.asked;
  page.begin(run);
  page.node(run, "1", "true");
  const again = await page.reload(TOLD);
  again.tell("progress_state", { prompt_id: run, nodes: {} });
  again.tell("executing", "1"); // the server says once more which node runs
  assert.deepEqual(again.said(), ["1 true"]);
  await again.end(run);
  assert.deepEqual(again.said(), ["1 true"], "node 2 may have run meanwhile");
  await again.look(again.tabs[page.tabs.indexOf(other)]);
  assert.deepEqual(again.said(), ["1 in another tab", "2 so too"]);
});

test("a connection that breaks while a node runs takes nothing from it", async () => {
  const { page } = await opened("a.json");
  const run = page.queue();
  await page.asked;
  page.begin(run);
  page.node(run, "1", "true");
  page.tell("reconnected");
  await page.quiet();
  page.tell("executing", "1");
  await page.end(run);
  assert.deepEqual(page.said(), ["1 true"]);
});

test("a cleared workflow says nothing, and what it said when that is undone", async () => {
  const { page, tabs: [one] } = await opened("a.json");
  await page.run({ 1: "true", 2: "also" });
  one.clear();
  page.tell("graphCleared");
  await page.look(one);
  one.nodes = new Map();
  one.load([1]);
  await page.look(one);
  assert.deepEqual(page.said(), []);
  one.activeState = { id: ID };
  one.load();
  await page.look(one);
  assert.deepEqual(page.said(), ["1 true", "2 also"]);

  one.clear();
  one.load([1]);
  await page.run({ 1: "of new nodes" });
  one.clear(); // again, with the same id
  page.tell("graphCleared");
  one.load([1]);
  await page.look(one);
  assert.deepEqual(page.said(), []);
});

test("clearing what is inside a node takes nothing from the nodes outside", async () => {
  const { page, tabs: [one] } = await opened("a.json");
  await page.run({ 1: "true", "2:7": "inside" });
  page.tell("graphCleared");
  await page.look(one);
  assert.deepEqual(page.said(), ["1 true"]);
});

test("a workflow that is opened under the path of a closed one has said nothing", async () => {
  const { page } = await opened("a.json", "b.json");
  await page.look(page.tabs[0]);
  await page.run({ 1: "true" });
  await page.look(page.tabs[1]);
  const again = await page.reload(TOLD); // a.json is not in sight
  await again.close(again.tabs[0]);
  await again.open("a.json", ID);
  assert.deepEqual(again.said(), []);
});
