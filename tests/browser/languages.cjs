// The page in one language after the other: what nodes, inputs and outputs are called, and the help page of every node.
"use strict";

const READY_MS = 90000;

async function open(page, language) {
  await page.evaluate((code) => window.app.extensionManager.setting.set("Comfy.Locale", code), language);
  await page.reload({ timeout: READY_MS });
  await page.waitForFunction(
    () => Object.keys(window.LiteGraph?.registered_node_types ?? {}).some((name) => name.startsWith("OSora")),
    null, { timeout: READY_MS },
  );
  await page.waitForTimeout(2000);
}

const place = (page) => page.evaluate(() => {
  const { app, LiteGraph } = window;
  app.graph.clear();
  const names = Object.keys(LiteGraph.registered_node_types).filter((name) => name.startsWith("OSora"));
  return names.map((type, i) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [60 + 420 * (i % 4), 120 + 360 * Math.floor(i / 4)];
    const shown = (slot) => slot.label || slot.localized_name || slot.name;
    return {
      type,
      id: node.id,
      title: node.title,
      category: LiteGraph.registered_node_types[type].category,
      inputs: Object.fromEntries(node.inputs.map((slot) => [slot.name, shown(slot)])),
      outputs: node.outputs.map(shown),
    };
  });
});

const select = (page, id) => page.evaluate((which) => {
  const { canvas, graph } = window.app;
  canvas.selectItems([graph.getNodeById(which)]);
}, id);

// The page still opens the workflow of its last visit, on a busy machine late: then ours is gone, and put down again.
async function placeForGood(page) {
  const info = page.getByTestId("info-button");
  for (let tries = 1; ; tries++) {
    const nodes = await place(page);
    await select(page, nodes[0].id);
    const stays = await info.waitFor({ timeout: 10000 }).then(() => true, () => false);
    if (stays || tries === 6) return nodes;
  }
}

// Help is looked at as a person does: the panel stays open, one node after the other is selected.
async function readHelp(page, nodes, headings) {
  await select(page, nodes[0].id);
  await page.getByTestId("info-button").click();
  for (const node of nodes) {
    await select(page, node.id);
    await page.locator(".node-help-content h1").getByText(headings[node.type], { exact: true }).waitFor({ timeout: READY_MS });
  }
}

module.exports = async (page, tools) => {
  const seen = {};
  try {
    for (const [language, headings] of Object.entries(tools.input.headings)) {
      await open(page, language);
      seen[language] = await placeForGood(page);
      await readHelp(page, seen[language], headings);
      await tools.shot(`language-${language}`);
    }
  } finally {
    await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.Locale", "en"));
  }
  return seen;
};
