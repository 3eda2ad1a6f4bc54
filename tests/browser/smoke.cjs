// The page knows our nodes: they are registered, can be put on the canvas, and show their inputs.
"use strict";

module.exports = async (page, tools) => {
  const registered = await page.evaluate(() =>
    Object.keys(window.LiteGraph.registered_node_types).filter((name) => name.startsWith("OSora")),
  );
  const placed = await page.evaluate((names) => {
    const { app, LiteGraph } = window;
    app.graph.clear();
    return names.map((name, i) => {
      const node = LiteGraph.createNode(name);
      app.graph.add(node);
      node.pos = [60 + 400 * (i % 4), 80 + 330 * Math.floor(i / 4)];
      return { type: name, title: node.title, inputs: node.inputs.map((slot) => slot.name) };
    });
  }, registered);
  await page.evaluate(() => window.app.canvas.setDirty(true, true));
  await page.waitForTimeout(500);
  await tools.shot("smoke");
  return { registered, placed };
};
