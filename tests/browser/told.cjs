// What a node says stays readable after the run, while it is true, with both renderers: in its tab, inside other
// nodes, and when the page is loaded again.
"use strict";

const READY = 90000;
const WAIT = 15000;
const TALKER = "OSoraPromptBuilder";
const QUIET = 500; // for what should not happen, there is no event to wait for

/** A node that says something of one release and nothing of another, and core's node that makes it run. */
async function build(page, words) {
  await page.evaluate(([talker, text]) => {
    const { app, LiteGraph } = window;
    app.graph.clear();
    const [prompt, shown] = [talker, "PreviewAny"].map((type) => LiteGraph.createNode(type));
    for (const node of [prompt, shown]) app.graph.add(node);
    [prompt.pos, shown.pos] = [[300, 200], [800, 200]];
    const set = (name, value) => (prompt.widgets.find((widget) => widget.name === name).value = value);
    set("prompt", text);
    set("aesthetic", "7");
    prompt.connect(0, shown, 0);
  }, [TALKER, words]);
}

const command = (page, id) => page.evaluate((name) => window.app.extensionManager.command.execute(name), id);

const openPath = (page) => page.evaluate(() => window.app.extensionManager.workflow.activeWorkflow.path);

/** What the nodes in sight say. */
function said(page) {
  return page.evaluate(() =>
    window.app.canvas.graph.nodes.flatMap((node) => node.widgets ?? []).filter((widget) => widget.name.startsWith("$$"))
      .map((widget) => String(widget.value)));
}

/** What they say as soon as they say this, or what they say instead. */
async function saysSoon(page, text) {
  const until = Date.now() + WAIT;
  while (Date.now() < until && !(await said(page)).includes(text)) await page.waitForTimeout(100);
  await page.waitForTimeout(QUIET);
  return said(page);
}

/** Whether a person sees it. */
function isSeen(page, text) {
  return page.evaluate((start) => [...document.querySelectorAll("body *")].some((each) =>
    String(each.value ?? (each.childElementCount ? "" : each.textContent)).includes(start) && each.checkVisibility()),
  text.slice(0, 24));
}

/** Choose what the node says, wherever it stands; null leaves it. */
function choose(page, version) {
  return page.evaluate(([type, value]) => {
    const nodes = window.app.graph.nodes.flatMap((node) => (node.subgraph ? [...node.subgraph.nodes] : [node]));
    const node = nodes.find((each) => each.type === type);
    if (value !== null) node.widgets.find((widget) => widget.name === "version").value = value;
  }, [TALKER, version]);
}

/** Make the page tell when its next run has ended, and fail where it does not. */
function listen(page) {
  return page.evaluate((limit) => {
    const { api } = window.app;
    window.ended = new Promise((end, fail) => {
      api.addEventListener("execution_success", () => end(), { once: true });
      api.addEventListener("execution_error", () => fail(new Error("the run fails")), { once: true });
      setTimeout(() => fail(new Error("the run does not end")), limit);
    });
  }, READY);
}

/** Run once and wait until the page has done all it does when a run ends. */
async function run(page, version) {
  await choose(page, version);
  await listen(page);
  await page.evaluate(() => window.app.queuePrompt(0).then(() => window.ended));
  await page.waitForTimeout(QUIET);
  return said(page);
}

/** Run what is in sight while another tab is: the server hears of it when that is there. */
async function runUnseen(page, version, other) {
  const path = await openPath(page);
  await choose(page, version);
  await listen(page);
  await page.evaluate(async () => {
    const { app } = window;
    const ask = app.api.fetchApi;
    const sent = new Promise((asked) => {
      app.api.fetchApi = async (route, ...given) => {
        if (route === "/prompt") {
          app.api.fetchApi = ask;
          asked();
          await new Promise((go) => (window.go = go));
        }
        return ask.call(app.api, route, ...given);
      };
    });
    window.queued = app.queuePrompt(0);
    await sent;
  });
  await goTo(page, other);
  await page.evaluate(() => (window.go(), window.queued.then(() => window.ended)));
  await page.waitForTimeout(QUIET);
  const there = await said(page);
  await goTo(page, path);
  await page.waitForTimeout(2 * QUIET);
  return { there, back: await said(page) };
}

async function newTab(page, words) {
  await command(page, "Comfy.NewBlankWorkflow");
  await build(page, words);
}

async function goTo(page, path) {
  const tabs = await page.evaluate(() => window.app.extensionManager.workflow.openWorkflows.length);
  for (let step = 0; step < tabs && (await openPath(page)) !== path; step += 1) {
    await command(page, "Workspace.NextOpenedWorkflow");
  }
  if ((await openPath(page)) !== path) throw new Error(`no tab ${path} among ${tabs}`);
}

/** The same workflow is opened once more, which has not run there and is in sight while the first one runs. */
async function twin(page, input) {
  const path = await openPath(page);
  await page.evaluate(() => window.app.loadGraphData(window.app.graph.serialize(), true, true, "twin"));
  await page.waitForTimeout(2 * QUIET);
  const other = await openPath(page);
  const opened = await said(page);
  await goTo(page, path);
  const untrue = await runUnseen(page, input.silent, other);
  return { opened, untrue, unseen: await runUnseen(page, input.speaks, other) };
}

/** Another tab is opened, where a node of the same number runs and says nothing; and this one runs unseen. */
async function inTabs(page, input, words, text) {
  const path = await openPath(page);
  const sizes = () => page.evaluate(() => JSON.stringify(window.app.graph.nodes.map(({ size }) => [...size])));
  const before = await sizes();
  await newTab(page, words);
  const other = await openPath(page);
  const elsewhere = [...await said(page), ...await run(page, input.silent)];
  await goTo(page, path);
  const back = await saysSoon(page, text);
  const seen = await isSeen(page, text);
  const asLarge = (await sizes()) === before;
  const untrue = await runUnseen(page, input.silent, other);
  const unseen = await runUnseen(page, input.speaks, other);
  const again = await twin(page, input);
  return { elsewhere, back, seen, asLarge, untrue, unseen, twin: again, last: await run(page, input.silent) };
}

/** A step is undone: the page makes new nodes. */
async function undo(page, text) {
  await page.evaluate(async () => {
    const { app } = window;
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
    const capture = () => (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
    capture();
    window.first = app.graph.nodes[0];
    window.first.pos = [310, 210];
    capture();
  });
  await command(page, "Comfy.Undo");
  const undone = await saysSoon(page, text);
  return { undone, made: await page.evaluate(() => window.first !== window.app.graph.nodes[0]) };
}

/** The node stands inside another one, which one looks into, also after another tab was in sight. */
async function inside(page, input) {
  await page.evaluate((type) => {
    const { app } = window;
    app.graph.convertToSubgraph(new Set([app.graph.nodes.find((node) => node.type === type)]));
  }, TALKER);
  const look = async (within) => {
    await page.evaluate((into) => {
      const { app } = window;
      app.canvas.setGraph(into ? app.graph.nodes.find((node) => node.subgraph).subgraph : app.graph);
    }, within);
    await page.waitForTimeout(QUIET);
    return said(page);
  };
  const outside = await run(page, input.speaks);
  const within = await look(true);
  const path = await openPath(page);
  await command(page, "Comfy.NewBlankWorkflow");
  await goTo(page, path);
  const back = await saysSoon(page, within[0]);
  return { outside, within, back, out: await look(false) };
}

/** The page is loaded again, and opens what was open. */
async function reload(page, tools) {
  await page.waitForTimeout(1000); // the page keeps what it opens again a little later
  await tools.reload();
  await page.waitForFunction(() => window.app.graph.nodes.length > 1, null, { timeout: WAIT });
  await page.waitForTimeout(2 * QUIET);
  return said(page);
}

module.exports = async (page, tools) => {
  const found = {};
  const { input } = tools;
  const setting = (value) =>
    page.evaluate((on) => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", on), value);
  const before = await page.evaluate(() => window.app.extensionManager.setting.get("Comfy.VueNodes.Enabled"));
  for (const vue of [false, true]) {
    await setting(vue);
    const kind = vue ? "nodes2" : "classic";
    await newTab(page, `a red circle, ${kind}`); // nothing is taken from the run before
    const first = await run(page, input.speaks);
    const [text] = first;
    await tools.shot(`told-${kind}`);
    const cached = await run(page, null);
    const other = await run(page, input.silent);
    const again = await run(page, input.speaks);
    const undone = await undo(page, text);
    const reloaded = await reload(page, tools);
    const seen = await isSeen(page, text);
    await tools.shot(`told-${kind}-reloaded`);
    const tabs = await inTabs(page, input, `a blue square, ${kind}`, text);
    const gone = await reload(page, tools);
    await newTab(page, `a green line, ${kind}`);
    const within = await inside(page, input);
    found[kind] = { said: first, cached, other, again, ...undone, reloaded, seen, tabs, gone, inside: within };
  }
  await setting(before);
  return found;
};
