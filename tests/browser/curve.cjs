// A template with a curve on a node: drawn with core's editor, or written where there is none; saved, loaded, run.
//
// Given: `name` of the template, `type` of the node, its input `points` and what to write there, `pull`: how far the last
// point is dragged, as a part of the editor's height, down is more than 0; `vue`: the renderer.
"use strict";

const RUN_MS = 240000, READY_MS = 60000;

const values = (page, type) => page.evaluate((type) => {
  const node = window.app.graph.nodes.find((each) => each.type === type);
  return Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.value]));
}, type);

async function load(page, graph, type) {
  await page.evaluate((given) => window.app.loadGraphData(given), graph);
  await page.waitForFunction((type) => window.app.graph.nodes.some((each) => each.type === type), type, {
    timeout: READY_MS,
  });
  await page.evaluate((type) => {
    const { app } = window, node = app.graph.nodes.find((each) => each.type === type);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [300 - node.pos[0], 120 - node.pos[1]];
    app.canvas.setDirty(true, true);
  }, type);
  await page.waitForTimeout(1000);
}

async function run(page) {
  await page.evaluate(() => {
    const { api } = window.app, seen = (window.seen = { outputs: {}, texts: {}, end: "", said: "" });
    api.addEventListener("executed", ({ detail }) => (seen.outputs[detail.display_node ?? detail.node] = detail.output));
    api.addEventListener("progress_text", ({ detail }) => (seen.texts[detail.nodeId] = detail.text));
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(kind, ({ detail }) => Object.assign(seen, { end: kind, said: detail.exception_message ?? "" }));
    }
  });
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(() => window.seen.end || Object.keys(window.app.lastNodeErrors ?? {}).length, null, {
    timeout: RUN_MS,
  });
  return page.evaluate(() => ({ ...window.seen, refused: Object.values(window.app.lastNodeErrors ?? {}) }));
}

module.exports = async (page, tools) => {
  const { name, type, points, written, pull, vue } = tools.input, found = {};
  const before = await page.evaluate(() => window.app.extensionManager.setting.get("Comfy.VueNodes.Enabled"));
  await page.evaluate((on) => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", on), vue);
  try {
    await load(page, await page.evaluate(async (title) => {
      const file = await window.app.api.fetchApi(`/workflow_templates/opensora/${encodeURIComponent(title)}.json`);
      return file.json();
    }, name), type);
    found.opened = await values(page, type);
    if (vue) {
      const end = page.getByTestId("curve-editor").first().getByTestId("curve-point").last();
      await end.waitFor({ timeout: READY_MS });
      const from = await end.boundingBox(), box = await page.getByTestId("curve-editor").first().boundingBox();
      await page.mouse.move(from.x + from.width / 2, from.y + from.height / 2);
      await page.mouse.down();
      await page.mouse.move(from.x + from.width / 2, from.y + (pull / 3) * box.height, { steps: 4 });
      await page.mouse.move(from.x + from.width / 2, from.y + pull * box.height, { steps: 4 });
      await page.mouse.up();
    } else {
      await page.evaluate(({ type, points, written }) => {
        const node = window.app.graph.nodes.find((each) => each.type === type);
        node.widgets.find((widget) => widget.name === points).value = written;
      }, { type, points, written });
    }
    await page.waitForTimeout(300);
    found.changed = await values(page, type);
    await tools.shot(`curve-${type}-${vue ? "vue" : "classic"}`);
    await load(page, await page.evaluate(() => window.app.graph.serialize()), type);
    found.loaded = await values(page, type);
    found.queued = await page.evaluate(async (type) => {
      const { output } = await window.app.graphToPrompt();
      return Object.values(output).find((each) => each.class_type === type).inputs;
    }, type);
    Object.assign(found, await run(page));
    await tools.shot(`curve-run-${type}-${vue ? "vue" : "classic"}`);
  } finally {
    await page.evaluate((on) => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", on), before);
  }
  return found;
};
