// What the page offers to download for graphs whose files are missing: addresses and names, as its buttons ask for them.
"use strict";

module.exports = async (page, tools) => {
  await page.evaluate(() => {
    window.asked = [];
    const click = HTMLAnchorElement.prototype.click;
    HTMLAnchorElement.prototype.click = function () {
      if (this.download) window.asked.push([this.download, this.href]);
      else click.call(this);
    };
  });
  const offers = {};
  for (const [name, graph] of Object.entries(tools.input.graphs)) {
    await page.evaluate(async (given) => {
      window.asked.length = 0;
      await window.app.loadGraphData(given);
    }, graph);
    const all = page.getByRole("button", { name: "Download all" });
    const details = page.getByRole("button", { name: "View details" });
    await all.or(details).first().waitFor({ timeout: 30000 });
    if (!(await all.isVisible())) await details.click();
    await page.waitForTimeout(700);
    await all.click();
    await page.waitForTimeout(500);
    await tools.shot(`offers-${name}`);
    offers[name] = await page.evaluate(() => [...window.asked]);
  }
  return offers;
};
