// A graph of an older pack: the page says that nodes are missing, offers ours in their place, and a click replaces them.
// Saved and opened again it is the same graph.
"use strict";

const ANSWER_MS = 30000;

module.exports = async (page, tools) => {
  await page.evaluate((graph) => window.app.loadGraphData(graph), tools.input.graph);
  const replace = page.getByRole("button", { name: /^Replace All/ }).first();
  const details = page.getByRole("button", { name: "View details" });
  await replace.or(details).first().waitFor({ timeout: ANSWER_MS });
  if (!(await replace.isVisible())) await details.click();
  await replace.waitFor({ timeout: ANSWER_MS });
  await tools.shot("old-packs-offered");
  await replace.click();
  const old = tools.input.old;
  await page.waitForFunction(
    (names) => !window.app.graph._nodes.some((node) => names.includes(node.type)), old, { timeout: ANSWER_MS },
  );
  await page.waitForTimeout(500);
  await tools.shot("old-packs-replaced");
  const replaced = await page.evaluate(described);
  const wrong = [];
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  page.on("pageerror", (error) => wrong.push(error.message));
  await page.evaluate(async () => {
    const saved = JSON.parse(JSON.stringify(window.app.graph.serialize()));
    await window.app.loadGraphData(saved);
    window.app.canvas.setDirty(true, true);
  });
  await page.waitForTimeout(1500); // some frames are drawn
  await tools.shot("old-packs-opened-again");
  return { replaced, again: await page.evaluate(described), wrong };
};

// Every node of the graph: its type, where its inputs come from, what its widgets hold. Runs in the page.
function described() {
  const { graph } = window.app;
  const from = (slot) => {
    const link = slot.link == null ? null : graph.links.get?.(slot.link) ?? graph.links[slot.link];
    return link ? [Number(link.origin_id), link.origin_slot] : null;
  };
  return Object.fromEntries(graph._nodes.map((node) => [node.id, {
    type: node.type,
    inputs: Object.fromEntries((node.inputs ?? []).map((slot) => [slot.name, from(slot)]).filter(([, link]) => link)),
    values: Object.fromEntries((node.widgets ?? []).map((widget) => [widget.name, widget.value])),
  }]));
}
