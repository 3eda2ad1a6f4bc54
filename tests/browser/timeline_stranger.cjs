// Open-Sora Timeline under rough hands: dragged over the edges, deleted with the keys, shown in the panel at the right,
// twice in one graph, in a subgraph, collapsed, zoomed, and with a plan that comes by wire.
"use strict";

const READY_MS = 60000;
const VIEW = ".opensora-timeline:not(.in-panel)";

const textOf = (page, title) => page.evaluate((name) => {
  const node = window.app.graph.nodes.find((each) => each.title === name);
  return node ? node.widgets.find((widget) => widget.name === "plan").value : null;
}, title);
const plan = async (page, title = "first") => JSON.parse(await textOf(page, title));
const set = (page, title, text) => page.evaluate(([name, value]) => {
  const node = window.app.graph.nodes.find((each) => each.title === name);
  node.widgets.find((widget) => widget.name === "plan").value = value;
}, [title, JSON.stringify(text)]);
const nodes = (page) => page.evaluate(() => window.app.graph.nodes.filter((each) => each.type === "OSoraTimeline").length);
const settle = (page, time = 450) => page.waitForTimeout(time);

async function boxOf(found) {
  for (let attempt = 0; attempt < 20; attempt++) {
    const box = await found.boundingBox().catch(() => null);
    if (box) return box;
    await found.page().waitForTimeout(100); // the view is drawn anew
  }
  return found.boundingBox();
}

async function drag(page, span, from, right, finish = () => page.mouse.up()) {
  const box = await boxOf(span), [x, y] = [box.x + box.width * from, box.y + box.height / 2];
  await page.mouse.move(x, y);
  await page.mouse.down();
  await page.mouse.move(x + right / 2, y, { steps: 3 });
  await page.mouse.move(x + right, y, { steps: 3 });
  await finish();
  await settle(page);
}

function build(page) {
  return page.evaluate(() => {
    const { app, LiteGraph } = window;
    app.graph.clear();
    const add = (type, pos, title, size) => {
      const node = LiteGraph.createNode(type);
      app.graph.add(node);
      Object.assign(node, { pos, title: title ?? node.title });
      if (size) node.setSize?.(size);
      return node;
    };
    const put = (node, values) => Object.entries(values).forEach(([name, value]) => {
      node.widgets.find((widget) => widget.name === name).value = value;
    });
    const wire = (from, to, name) => from.connect(0, to, to.inputs.findIndex((input) => input.name.endsWith(name)));
    const latent = add("OSoraEmptyLatent", [20, 100]);
    put(latent, { version: "1.2", frames: 68 });
    const [ground, square] = [add("EmptyImage", [20, 330]), add("EmptyImage", [20, 520])];
    put(ground, { width: 64, height: 64, color: 0x0a0a0a });
    put(square, { width: 20, height: 20, color: 0xe62020 });
    const laid = add("ImageCompositeMasked", [20, 720]);
    put(laid, { x: 22, y: 22 });
    wire(ground, laid, "destination");
    wire(square, laid, "source");
    for (const [at, title] of ["first", "second"].entries()) {
      const node = add("OSoraTimeline", [340, 100 + at * 900], title, [520, 600]);
      wire(latent, node, "clip_latent");
      wire(laid, node, "picture0");
      wire(ground, node, "picture1");
    }
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [0, 0];
    app.canvas.setDirty(true, true);
  });
}

async function edges(page, found) {
  const spans = page.locator(`${VIEW} .opensora-timeline-span`);
  const one = { references: [{ reference: 0, at: 5, length: 3 }, { reference: 1, at: -1 }] };
  await set(page, "first", one);
  await spans.nth(1).waitFor({ timeout: READY_MS });
  await settle(page);
  found.films = await page.locator(`${VIEW} .opensora-timeline-film`).count();
  found.drawing = await page.locator(`${VIEW} .opensora-timeline-tile`).first().evaluate((each) => each.style.backgroundImage.slice(0, 30));
  await drag(page, spans.nth(0), 0.5, 3000);
  found.right = (await plan(page)).references[0];
  await drag(page, spans.nth(0), 0.5, -3000);
  found.left = (await plan(page)).references[0];
  await drag(page, spans.nth(0), 0.99, -2000);
  found.narrow = (await plan(page)).references[0];
  await drag(page, spans.nth(0), 0.5, 300, async () => {
    await page.keyboard.press("Escape");
    await page.mouse.up();
  });
  found.escaped = (await plan(page)).references[0];
}

async function keys(page, found) {
  const bar = page.locator(`${VIEW} .opensora-timeline-bar`).first();
  await bar.locator("button").first().click();
  await settle(page);
  found.added = (await plan(page)).references.length;
  await page.keyboard.press("Delete");
  found.deleted = (await plan(page)).references.length;
  for (let press = 0; press < 4; press++) await page.keyboard.press("Delete");
  await bar.locator("select").focus();
  await page.keyboard.press("Delete");
  found.emptied = [await plan(page), await nodes(page)];
  await page.evaluate(() => {
    const node = window.app.graph.nodes.find((each) => each.title === "first");
    node.widgets.find((widget) => widget.name === "plan").value = "{broken";
  });
  await settle(page);
  await page.locator(`${VIEW}`).first().focus();
  await page.keyboard.press("Delete");
  found.broken = [await textOf(page, "first"), await nodes(page)];
}

async function twins(page, found) {
  const goTo = (title) => page.evaluate((name) => {
    const { app } = window, node = app.graph.nodes.find((each) => each.title === name);
    app.canvas.ds.offset = [0, 100 - node.pos[1]];
    app.canvas.setDirty(true, true);
  }, title);
  await set(page, "first", { references: [{ reference: 1, at: 10, strength: 0.5 }] });
  await set(page, "second", { references: [] });
  await settle(page, 800);
  await page.locator(`${VIEW} .opensora-timeline-span`).first().click();
  await page.keyboard.press("Control+c");
  await goTo("second");
  await settle(page, 800);
  const shown = page.locator(VIEW).filter({ visible: true });
  await shown.last().focus();
  await page.keyboard.press("Control+v");
  await settle(page);
  found.pasted = [await plan(page), await plan(page, "second")];
  await goTo("first");
  await settle(page, 800);
}

async function panel(page, found, tools, kind) {
  await set(page, "first", { references: [{ reference: 0, at: 0, length: 5 }] });
  const before = await boxOf(page.locator(VIEW).first());
  await page.evaluate(async () => {
    const { app } = window;
    app.canvas.selectItems([app.graph.nodes.find((each) => each.title === "first")]);
    await app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", true);
  });
  const view = page.locator(".opensora-timeline.in-panel");
  await view.waitFor({ timeout: READY_MS });
  await settle(page, 800);
  await tools.shot(`timeline-panel-${kind}`);
  await view.locator(".opensora-timeline-span").waitFor();
  const track = await boxOf(view.locator(".opensora-timeline-track"));
  await drag(page, view.locator(".opensora-timeline-span"), 0.5, track.width / 2);
  found.panel = (await plan(page)).references[0];
  const beside = await boxOf(page.locator(VIEW).first());
  found.beside = [before.width, beside.width, before.y, beside.y].map(Math.round);
  await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", false));
  await settle(page, 800);
  found.panelClosed = [await page.locator(VIEW).count(), await view.count()];
}

async function wired(page, found) {
  found.wired = await page.evaluate(async () => {
    const { app, LiteGraph } = window;
    const node = app.graph.nodes.find((each) => each.title === "first");
    const text = LiteGraph.createNode("PrimitiveStringMultiline");
    app.graph.add(text);
    text.pos = [20, 950];
    text.widgets[0].value = '{"references": [{"reference": 1, "at": 10}]}';
    text.connect(0, node, node.inputs.findIndex((input) => input.name === "plan"));
    return node.inputs.find((input) => input.name === "plan").link != null;
  });
  await settle(page, 800);
  const spans = page.locator(`${VIEW} .opensora-timeline-span`);
  await drag(page, spans.nth(0), 0.5, -200);
  found.locked = [
    await plan(page), await spans.nth(0).evaluate((each) => each.style.left),
    await page.locator(`${VIEW} .opensora-timeline-sentence`).first().textContent(),
  ];
}

async function shapes(page, found, tools, kind) {
  await page.evaluate(() => {
    const { app } = window, node = app.graph.nodes.find((each) => each.title === "first");
    node.disconnectInput(node.inputs.findIndex((input) => input.name === "plan"));
    node.flags.collapsed = false;
    node.collapse();
    app.canvas.setDirty(true, true);
  });
  await settle(page, 800);
  await page.evaluate(() => {
    const { app } = window, node = app.graph.nodes.find((each) => each.title === "first");
    node.collapse();
    app.canvas.ds.scale = 0.5;
    app.canvas.setDirty(true, true);
  });
  await settle(page, 1200);
  await tools.shot(`timeline-half-${kind}`);
  await set(page, "first", { references: [{ reference: 0, at: 0, length: 5 }] });
  await settle(page, 800);
  const track = await boxOf(page.locator(`${VIEW} .opensora-timeline-track`).first());
  await drag(page, page.locator(`${VIEW} .opensora-timeline-span`).first(), 0.5, track.width / 2);
  found.zoomed = (await plan(page)).references[0];
}

async function closed(page, found) {
  await page.evaluate(() => {
    const { graph } = window.app;
    graph.remove(graph.nodes.find((each) => each.type === "ImageCompositeMasked"));
  });
  await settle(page, 800);
  found.closed = await page.locator(`${VIEW} .opensora-timeline-sentence`).first().textContent();
}

async function inside(page, found, tools, kind) {
  await page.evaluate(() => {
    const { app } = window;
    app.canvas.ds.scale = 1;
    const node = app.graph.nodes.find((each) => each.title === "first");
    const made = app.graph.convertToSubgraph(new Set([node]));
    app.canvas.setGraph?.(made.subgraph);
    app.canvas.ds.offset = [300 - made.subgraph.nodes[0].pos[0], 100 - made.subgraph.nodes[0].pos[1]];
    app.canvas.setDirty(true, true);
  });
  await settle(page, 1500);
  await tools.shot(`timeline-inside-${kind}`);
  const read = () => page.evaluate(() => {
    const node = window.app.canvas.graph.nodes.find((each) => each.type === "OSoraTimeline");
    return JSON.parse(node.widgets.find((widget) => widget.name === "plan").value).references[0];
  });
  found.inside = [await read()];
  const view = page.locator(VIEW).filter({ visible: true });
  const track = await boxOf(view.locator(".opensora-timeline-track").first());
  await drag(page, view.locator(".opensora-timeline-span").first(), 0.5, -track.width / 4);
  found.inside.push(await read());
  found.insideFilms = await view.locator(".opensora-timeline-film").count();
}

module.exports = async (page, tools) => {
  const { vue } = tools.input, kind = vue ? "vue" : "classic", found = {};
  await page.waitForFunction(() => window.app?.extensions?.some((each) => each.name === "opensora.timeline"), null, {
    timeout: READY_MS,
  });
  await page.evaluate((on) => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", on), vue);
  await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", false));
  await build(page);
  await page.locator(`${VIEW} .opensora-timeline-ruler`).first().click();
  await settle(page, 800);
  const steps = [edges, keys, twins, panel, wired, shapes, closed, inside];
  for (const step of steps) await step(page, found, tools, kind);
  return found;
};
