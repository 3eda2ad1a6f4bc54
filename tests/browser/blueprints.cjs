// As a person would: look a blueprint up in the search of nodes, put it on the canvas, give it what it needs, press Run.
"use strict";

const RUN_MS = 200000;

// The list of nodes at the left, searched for a name.
async function find(page, name) {
  const field = page.locator("input[placeholder^='Search']").first();
  await field.fill(name);
  await page.waitForTimeout(1500); // the list follows what is typed a little later
}

module.exports = async (page, tools) => {
  const seen = {};
  await page.keyboard.press("n"); // opens it
  await page.waitForTimeout(1000);
  for (const [name, given] of Object.entries(tools.input.blueprints)) {
    await page.evaluate(() => window.app.graph.clear());
    await find(page, name);
    await tools.shot(`blueprint-search-${name}`);
    await page.getByText(name, { exact: true }).last().click();
    await page.waitForTimeout(300);
    await page.mouse.click(800, 300); // a new node hangs on the pointer until a click lets it go
    await page.waitForFunction(() => window.app.graph._nodes.length === 1, null, { timeout: 20000 });
    await page.evaluate(({ from, steps }) => {
      const { app, LiteGraph } = window;
      const [node] = app.graph._nodes;
      const add = (type, x, y) => {
        const one = LiteGraph.createNode(type);
        app.graph.add(one);
        one.pos = [node.pos[0] + x, node.pos[1] + y];
        return one;
      };
      node.widgets.find((widget) => widget.name === "steps").value = steps;
      const save = add("SaveVideo", 500, 0);
      node.connect(0, save, 0);
      if (from) {
        const source = add(from.type, -400, 0);
        source.widgets.find((widget) => widget.name === from.widget).value = from.file;
        source.connect(0, node, 0);
      }
      app.canvas.setDirty(true, true);
    }, { from: given, steps: tools.input.steps });
    const done = page.evaluate((limit) => new Promise((resolve) => {
      window.app.api.addEventListener("executed", ({ detail }) => {
        const [video] = detail.output?.images ?? [];
        if (video?.filename?.endsWith(".mp4")) resolve(video);
      });
      window.app.api.addEventListener("execution_error", ({ detail }) => resolve({ error: detail.exception_message }));
      setTimeout(() => resolve({ error: "no video in time" }), limit);
    }), RUN_MS);
    await page.getByTestId("queue-button").click();
    seen[name] = { video: await done };
    await page.waitForTimeout(300);
    await tools.shot(`blueprint-${name}`);
  }
  return seen;
};
