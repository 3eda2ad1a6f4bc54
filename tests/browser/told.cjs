// What a node says stays readable after the run, while it is true, with both renderers.
"use strict";

const READY = 90000;
const FIRST = 0;

/** A node that says something of one release and nothing of another, and core's node that makes it run. */
async function build(page, words) {
  await page.evaluate((text) => {
    const { app, LiteGraph } = window;
    app.graph.clear();
    const [prompt, shown] = ["OSoraPromptBuilder", "PreviewAny"].map((type) => LiteGraph.createNode(type));
    for (const node of [prompt, shown]) app.graph.add(node);
    [prompt.pos, shown.pos] = [[300, 200], [800, 200]];
    const set = (name, value) => (prompt.widgets.find((widget) => widget.name === name).value = value);
    set("prompt", text);
    set("aesthetic", "7");
    prompt.connect(0, shown, 0);
  }, words);
}

/** Run once and wait until the page has done all it does when a run ends. */
async function run(page, version) {
  return page.evaluate(async ([at, value, limit]) => {
    const { app } = window;
    const { api } = await import("/scripts/api.js");
    const node = app.graph.nodes[at];
    if (value !== null) node.widgets.find((widget) => widget.name === "version").value = value;
    const done = new Promise((end, fail) => {
      api.addEventListener("execution_success", end, { once: true });
      api.addEventListener("execution_error", fail, { once: true });
      setTimeout(() => fail(new Error("the run does not end")), limit);
    });
    await app.queuePrompt(0);
    await done;
    await new Promise((wait) => setTimeout(wait, 500)); // for what should not happen, there is no event to wait for
    return app.graph.nodes[at].widgets.filter((widget) => widget.name.startsWith("$$")).map((widget) => String(widget.value));
  }, [FIRST, version, READY]);
}

module.exports = async (page, tools) => {
  const found = {};
  const setting = (value) =>
    page.evaluate((on) => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", on), value);
  const before = await page.evaluate(() => window.app.extensionManager.setting.get("Comfy.VueNodes.Enabled"));
  const { speaks, silent } = tools.input;
  for (const vue of [false, true]) {
    await setting(vue);
    const kind = vue ? "nodes2" : "classic";
    await build(page, `a red circle, ${kind}`); // nothing is taken from the run before
    const said = await run(page, speaks);
    await tools.shot(`told-${kind}`);
    const cached = await run(page, null);
    const other = await run(page, silent);
    found[kind] = { said, cached, other, again: await run(page, speaks) };
  }
  await setting(before);
  return found;
};
