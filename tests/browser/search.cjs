// The search for nodes, asked as a person asks it: what it lists, in its order. And what the page offers for a wire that
// is dropped on nothing: in its menu, and in its search once a few letters are typed.
"use strict";

const READY_MS = 30000;
// The page as it comes today, whatever is saved; the classic canvas, whose slots can be asked for their places.
const AS_NEW = {
  "Comfy.VueNodes.Enabled": false, "Comfy.LinkRelease.Action": "search box",
  "Comfy.LinkRelease.ActionShift": "context menu",
};

module.exports = async (page, tools) => {
  const found = { words: {}, menus: {}, lists: {} };
  await page.waitForFunction(() => window.app?.graph, null, { timeout: READY_MS });
  await page.evaluate(() => window.app.graph.clear());
  for (const words of tools.input.words) {
    await page.evaluate(() => window.app.extensionManager.command.execute("Workspace.SearchBox.Toggle"));
    const field = page.locator('input[role="combobox"], .comfy-vue-node-search-container input').first();
    await field.waitFor({ timeout: READY_MS });
    await field.fill(words);
    await page.waitForTimeout(1500); // the list follows what is typed a little later
    found.words[words] = await listed(page);
    await tools.shot(`search-${words}`);
    await page.keyboard.press("Escape");
    await page.waitForTimeout(500);
  }
  await page.evaluate(async (settings) => {
    for (const [name, value] of Object.entries(settings)) await window.app.extensionManager.setting.set(name, value);
  }, AS_NEW);
  for (const wire of tools.input.wires) {
    await drop(page, wire, true);
    await page.locator(".litecontextmenu").first().waitFor({ timeout: READY_MS });
    found.menus[wire.join(" ")] = await page.locator(".litecontextmenu .litemenu-entry").allInnerTexts();
    await page.keyboard.press("Escape");
    await page.evaluate(() => document.querySelectorAll(".litecontextmenu").forEach((menu) => menu.remove()));
    await drop(page, wire, false);
    const field = page.locator('input[role="combobox"], .comfy-vue-node-search-container input').first();
    await field.waitFor({ timeout: READY_MS });
    await field.fill(tools.input.letters);
    await page.waitForTimeout(1500);
    found.lists[wire.join(" ")] = await listed(page);
    await tools.shot(`wire-${wire.join("-")}`);
    await page.keyboard.press("Escape");
    await page.waitForTimeout(500);
  }
  return found;
};

// The titles the search lists.
function listed(page) {
  return page.evaluate(() =>
    [...document.querySelectorAll('[data-testid="result-item"]')].map((option) => option.innerText.split("\n")[0].trim()),
  );
}

// A wire from an output of a node, dropped on the empty canvas, with Shift or without.
async function drop(page, [kind, slot], shift) {
  const [x, y] = await page.evaluate(([kind, slot]) => {
    const { app, LiteGraph } = window, { canvas } = app;
    app.graph.clear();
    const node = LiteGraph.createNode(kind);
    app.graph.add(node);
    node.pos = [250, 200];
    canvas.ds.scale = 1;
    canvas.ds.offset = [0, 0];
    canvas.draw(true, true);
    const [x, y] = node.getConnectionPos(false, slot), corner = canvas.canvas.getBoundingClientRect();
    return [x + corner.x, y + corner.y];
  }, [kind, slot]);
  await page.waitForTimeout(300);
  await page.mouse.move(x, y);
  await page.mouse.down();
  await page.mouse.move(x + 150, y + 120, { steps: 6 });
  if (shift) await page.keyboard.down("Shift");
  await page.mouse.up();
  if (shift) await page.keyboard.up("Shift");
}
