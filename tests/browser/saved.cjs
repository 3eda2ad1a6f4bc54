// What the page saves of graphs it has just opened.
"use strict";

module.exports = async (page, tools) => {
  const saved = {};
  for (const [name, graph] of Object.entries(tools.input.graphs)) {
    saved[name] = await page.evaluate(async (given) => {
      await window.app.loadGraphData(given);
      return window.app.graph.serialize();
    }, graph);
  }
  return saved;
};
