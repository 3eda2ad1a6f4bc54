// A video file dropped on the canvas opens the graph it carries.
"use strict";

module.exports = async (page, tools) => {
  const found = {};
  for (const { name, type, content } of tools.input.files) {
    await page.evaluate(
      ({ name, type, content }) => {
        window.app.graph.clear();
        const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
        const carried = new DataTransfer();
        carried.items.add(new File([bytes], name, { type }));
        const at = { bubbles: true, cancelable: true, dataTransfer: carried, clientX: 800, clientY: 500 };
        document.querySelector("canvas#graph-canvas").dispatchEvent(new DragEvent("drop", at));
      },
      { name, type, content },
    );
    await page.waitForFunction(() => window.app.graph.nodes.length > 0, null, { timeout: 60000 });
    await page.waitForTimeout(1500);
    found[name] = await page.evaluate(() =>
      window.app.graph.nodes.map((node) => [node.type, (node.widgets || []).map((widget) => widget.value)]),
    );
    await tools.shot(`drop-${name}`);
  }
  return found;
};
