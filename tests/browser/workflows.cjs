// What the page itself makes of shipped workflows: their API form, for comparison with the tests' converter.
"use strict";

module.exports = async (page, tools) => {
  const prompts = {};
  for (const [name, workflow] of Object.entries(tools.input.workflows)) {
    prompts[name] = await page.evaluate(async (graph) => {
      await window.app.loadGraphData(graph);
      return (await window.app.graphToPrompt()).output;
    }, workflow);
  }
  return prompts;
};
