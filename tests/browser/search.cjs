// The search for nodes, asked as a person asks it: what it lists, in its order.
"use strict";

const READY_MS = 30000;

module.exports = async (page, tools) => {
  const found = {};
  await page.waitForFunction(() => window.app?.graph, null, { timeout: READY_MS });
  await page.evaluate(() => window.app.graph.clear());
  for (const words of tools.input.words) {
    await page.evaluate(() => window.app.extensionManager.command.execute("Workspace.SearchBox.Toggle"));
    const field = page.locator('input[role="combobox"], .comfy-vue-node-search-container input').first();
    await field.waitFor({ timeout: READY_MS });
    await field.fill(words);
    await page.waitForTimeout(1500); // the list follows what is typed a little later
    found[words] = await page.evaluate(() =>
      [...document.querySelectorAll('[data-testid="result-item"]')].map((option) => option.innerText.split("\n")[0].trim()),
    );
    await tools.shot(`search-${words}`);
    await page.keyboard.press("Escape");
    await page.waitForTimeout(500);
  }
  return found;
};
