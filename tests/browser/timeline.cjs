// Open-Sora Timeline on the page: drawn from its text, dragged, resized, undone, saved and loaded again.
"use strict";

const READY = 60000;

async function center(page, number) {
  let box = null; // null while the view is drawn anew
  for (let attempt = 0; attempt < 20 && !box; attempt++) {
    box = await page.locator(".opensora-timeline-span").nth(number).boundingBox();
    if (!box) await page.waitForTimeout(100);
  }
  return { x: box.x + box.width / 2, y: box.y + box.height / 2, box };
}

async function drag(page, from, to) {
  await page.mouse.move(from.x, from.y);
  await page.mouse.down();
  await page.mouse.move((from.x + to.x) / 2, (from.y + to.y) / 2, { steps: 3 });
  await page.mouse.move(to.x, to.y, { steps: 3 });
  await page.mouse.up();
  await page.waitForTimeout(200);
}

/** Script time of one pointer move while a span is held, in ms: the median of many. */
function cost(page) {
  return page.evaluate(() => {
    const span = document.querySelector(".opensora-timeline-span");
    const { left, top, width, height } = span.getBoundingClientRect();
    const at = (x) => ({
      bubbles: true, cancelable: true, pointerId: 1, button: 0, clientX: left + width / 2 + x, clientY: top + height / 2,
    });
    const capture = span.setPointerCapture;
    span.setPointerCapture = () => {};
    span.dispatchEvent(new PointerEvent("pointerdown", at(0)));
    const times = [];
    for (let x = 0; x < 60; x++) {
      const start = performance.now();
      for (let again = 0; again < 20; again++) span.dispatchEvent(new PointerEvent("pointermove", at(x + again)));
      times.push(performance.now() - start);
    }
    span.dispatchEvent(new PointerEvent("pointercancel", at(0)));
    span.setPointerCapture = capture;
    return times.sort((a, b) => a - b)[30];
  });
}

module.exports = async (page, tools) => {
  const { text, broken, many, vue } = tools.input;
  await page.waitForFunction(() => window.app?.extensions?.some((each) => each.name === "opensora.timeline"), null, {
    timeout: READY,
  });
  await page.evaluate((on) => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", on), vue);
  await page.evaluate((plan) => {
    const { app, LiteGraph } = window;
    app.graph.clear();
    const latent = LiteGraph.createNode("OSoraEmptyLatent");
    const node = LiteGraph.createNode("OSoraTimeline");
    for (const each of [latent, node]) app.graph.add(each);
    latent.pos = [40, 120];
    node.pos = [480, 120];
    node.setSize?.([620, 640]);
    latent.widgets.find((widget) => widget.name === "version").value = "1.2";
    latent.widgets.find((widget) => widget.name === "frames").value = 68;
    latent.connect(0, node, node.inputs.findIndex((input) => input.name === "clip_latent"));
    node.widgets.find((widget) => widget.name === "plan").value = plan;
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [0, 0];
    app.canvas.setDirty(true, true);
  }, text);
  const read = () => page.evaluate(() => {
    const node = window.app.graph.nodes.find((each) => each.type === "OSoraTimeline");
    return node.widgets.find((widget) => widget.name === "plan").value;
  });
  await page.locator(".opensora-timeline-span").nth(1).waitFor({ timeout: READY });
  await page.waitForTimeout(800);
  await tools.shot(`timeline-${vue ? "vue" : "classic"}`);
  const found = { drawn: await page.locator(".opensora-timeline-span").count() };
  await page.locator(".opensora-timeline-ruler").click(); // the page takes up what the script has built
  await page.waitForTimeout(500);

  const track = await page.locator(".opensora-timeline-track").boundingBox();
  const frame = track.width / 20;
  const first = await center(page, 0);
  await drag(page, first, { x: first.x + 5 * frame, y: first.y });
  found.moved = await read();
  const again = await center(page, 0);
  await drag(page, { x: again.box.x + again.box.width - 2, y: again.y }, { x: again.box.x + again.box.width - 2 + 2 * frame, y: again.y });
  found.resized = await read();
  const top = await center(page, 0);
  await drag(page, { x: top.x, y: top.box.y + 2 }, { x: top.x, y: top.box.y + 2 + 35 });
  found.softened = await read();
  for (let step = 0; step < 3; step++) {
    await page.keyboard.press("Control+z");
    await page.waitForTimeout(1200); // the page loads the whole graph again
  }
  await page.locator(".opensora-timeline-span").nth(1).waitFor({ timeout: READY });
  found.undone = await read();
  const chosen = await center(page, 0);
  await page.mouse.click(chosen.x, chosen.y);
  await page.keyboard.press("]");
  await page.keyboard.press("Control+c");
  await page.keyboard.press("Control+v");
  found.pasted = await read();
  await page.keyboard.press("Delete"); // what was pasted is chosen
  found.removed = await read();
  await page.waitForTimeout(500);
  const still = await center(page, 0);
  await page.mouse.click(still.x, still.y);
  await page.locator(".opensora-timeline-span.selected").waitFor({ timeout: READY });
  await page.locator('.opensora-timeline-field[name="strength"]').fill("0.4");
  await page.keyboard.press("Enter");
  found.typed = await read();
  await page.locator('.opensora-timeline-field[name="strength"]').fill("0");
  await page.keyboard.press("Tab");
  await page.locator(".opensora-timeline-prompt").fill("a calm | sea");
  await page.locator(".opensora-timeline-ruler").click();
  found.words = await read();
  await page.locator(".opensora-timeline-segment").selectOption("1");
  found.elsewhere = await page.locator(".opensora-timeline-elsewhere").count();
  await page.locator(".opensora-timeline-segment").selectOption("0");
  await page.locator(".opensora-timeline-prompt").fill("");
  await page.locator(".opensora-timeline-ruler").click();
  const saved = await page.evaluate(() => window.app.graph.serialize());
  found.saved = saved.nodes.find((node) => node.type === "OSoraTimeline").widgets_values;
  const queued = await page.evaluate(() => window.app.graphToPrompt());
  found.queued = Object.keys(Object.values(queued.output).find((node) => node.class_type === "OSoraTimeline").inputs);

  const set = (value) => page.evaluate((plan) => {
    const node = window.app.graph.nodes.find((each) => each.type === "OSoraTimeline");
    node.widgets.find((widget) => widget.name === "plan").value = plan;
  }, value);
  await set(text);
  await page.waitForTimeout(600);
  found.cost = await cost(page);
  await set(many);
  await page.waitForFunction(() => document.querySelectorAll(".opensora-timeline-span").length > 100, null, { timeout: READY });
  found.costOfMany = await cost(page);
  await set(broken);
  await page.locator(".opensora-timeline.broken").waitFor({ timeout: READY });
  found.sentence = await page.locator(".opensora-timeline-sentence").textContent();
  found.kept = await read();
  await tools.shot(`timeline-broken-${vue ? "vue" : "classic"}`);
  return found;
};
