// Open-Sora Stored Work shows its report on the node, and the settings dialog holds the days that things are kept.
"use strict";

module.exports = async (page, tools) => {
  await page.evaluate(() => {
    const { app, LiteGraph } = window;
    app.graph.clear();
    const node = LiteGraph.createNode("OSoraStored");
    app.graph.add(node);
    node.pos = [500, 300];
  });
  await page.evaluate(() => window.app.queuePrompt(0));
  await page.waitForFunction(
    () => window.app.graph.nodes[0].widgets.some((widget) => /\d+ kept, /.test(String(widget.value))),
    null, { timeout: 60000 },
  );
  await tools.shot("stored");
  const shown = await page.evaluate(() => window.app.graph.nodes[0].widgets.map((widget) => widget.value));
  const setting = await page.evaluate(() => window.app.extensionManager.setting.get("OpenSora.Stored.KeepDays"));
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.ShowSettingsDialog"));
  await page.waitForTimeout(1500);
  const entry = page.getByText("OpenSora", { exact: true }).first();
  await entry.click({ timeout: 20000 });
  await page.waitForTimeout(800);
  await tools.shot("stored-setting");
  const label = await page.getByText("Keep segments, unfinished decodes", { exact: false }).count();
  return { shown, setting, label };
};
