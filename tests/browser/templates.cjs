// Every template of the pack: opened as the page opens templates, measured, and run or shown the results of a run.
//
// Given: `names`, `nodes2` (the renderer), `label` of the pictures, and `results` by name: null to open only, those of
// an earlier run to show them, none to press Run. Gives by name the opening zoom, the nodes' rectangles before and
// after, what lies between their texts and pictures, and the results.
"use strict";

const RUN_MS = 240000;
const LOOKS = 60, LOOK_MS = 120, STILL = 3;

async function open(page, name) {
  await page.evaluate(async (name) => {
    const file = await window.app.api.fetchApi(`/workflow_templates/opensora/${encodeURIComponent(name)}.json`);
    await window.app.loadGraphData(await file.json(), true, true, name, { openSource: "template" });
  }, name);
}

// The little map at the lower right, which covers what lies below it; in graph units, null where it is closed.
function minimap(page) {
  return page.evaluate(() => {
    const map = document.querySelector('[data-testid="minimap-container"]');
    if (!map) return null;
    const { canvas } = window.app, { scale, offset } = canvas.ds;
    const corner = canvas.canvas.getBoundingClientRect(), box = map.getBoundingClientRect();
    const [x, y] = [(box.x - corner.x) / scale - offset[0], (box.y - corner.y) / scale - offset[1]];
    return [x, y, box.width / scale, box.height / scale].map(Math.round);
  });
}

// In graph units, titles included.
function rectangles(page) {
  return page.evaluate(() => {
    const { canvas, graph } = window.app, { scale, offset } = canvas.ds;
    const corner = canvas.canvas.getBoundingClientRect();
    const found = {};
    for (const node of graph._nodes) {
      const drawn = document.querySelector(`[data-node-id="${node.id}"]`);
      if (drawn) {
        const box = drawn.getBoundingClientRect();
        found[node.id] = [
          (box.x - corner.x) / scale - offset[0], (box.y - corner.y) / scale - offset[1],
          box.width / scale, box.height / scale,
        ];
      } else {
        node.updateArea?.();
        found[node.id] = [...node.boundingRect];
      }
      found[node.id] = found[node.id].map(Math.round);
    }
    return found;
  });
}

// How far below its text a node of the second renderer shows its picture, in graph units, by node.
function gaps(page) {
  return page.evaluate(() => {
    const { scale } = window.app.canvas.ds, found = {};
    for (const node of document.querySelectorAll("[data-node-id]")) {
      const text = [...node.querySelectorAll(".comfy-markdown-content > *")].pop();
      const picture = node.querySelector(".image-preview");
      if (!text || !picture) continue;
      const [above, below] = [text, picture].map((part) => part.getBoundingClientRect());
      found[node.dataset.nodeId] = Math.round((below.top - above.bottom) / scale);
    }
    return found;
  });
}

// The rectangles once nothing has moved for some looks.
async function settled(page) {
  let seen = {}, still = 0;
  for (let look = 0; look < LOOKS && still < STILL; look++) {
    await page.waitForTimeout(LOOK_MS);
    const now = await rectangles(page);
    still = JSON.stringify(now) === JSON.stringify(seen) ? still + 1 : 0;
    seen = now;
  }
  return seen;
}

async function run(page) {
  await page.evaluate(() => {
    const { api } = window.app, seen = (window.seen = { outputs: {}, texts: {}, end: "", said: "" });
    const listen = (kind, act) => api.addEventListener(kind, (event) => window.seen === seen && act(event.detail));
    listen("executed", (detail) => (seen.outputs[detail.display_node ?? detail.node] = detail.output));
    listen("progress_text", (detail) => (seen.texts[detail.nodeId] = detail.text));
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"]) {
      listen(kind, (detail) => Object.assign(seen, { end: kind, said: detail.exception_message ?? "" }));
    }
  });
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(() => window.seen.end || Object.keys(window.app.lastNodeErrors ?? {}).length, null, {
    timeout: RUN_MS,
  });
  return page.evaluate(() => ({ ...window.seen, refused: Object.values(window.app.lastNodeErrors ?? {}) }));
}

function show(page, { outputs, texts }) {
  return page.evaluate(({ outputs, texts }) => {
    const { api } = window.app;
    for (const [nodeId, text] of Object.entries(texts)) api.dispatchCustomEvent("progress_text", { nodeId, text });
    for (const [node, output] of Object.entries(outputs)) {
      api.dispatchCustomEvent("executed", { node, display_node: node, output, prompt_id: "shown" });
    }
  }, { outputs, texts });
}

module.exports = async (page, tools) => {
  const { names, nodes2, results, label } = tools.input;
  await page.evaluate(async (on) => {
    const { setting } = window.app.extensionManager;
    await setting.set("Comfy.VueNodes.Enabled", on);
    await setting.set("Comfy.RightSidePanel.IsOpen", false); // as on a first visit
  }, nodes2);
  const found = {};
  for (const name of names) {
    await open(page, name);
    const entry = (found[name] = { before: await settled(page) });
    entry.zoom = await page.evaluate(() => window.app.canvas.ds.scale);
    entry.minimap = await minimap(page);
    if (results[name] !== null) {
      entry.results = results[name] ?? (await run(page));
      if (results[name]) await show(page, results[name]);
      entry.after = await settled(page);
      entry.gaps = await gaps(page);
    }
    await tools.shot(`${name} - ${label}`);
  }
  return found;
};
