// A workflow with Open-Sora Timeline: opened, dragged, saved, copied, run, and looked at after the run. Its pictures are
// those of the help page, see demo/help_pictures.py.
"use strict";

const RUN_MS = 240000, READY_MS = 60000;
const SPAN = ".opensora-timeline-span";

const plan = (page) => page.evaluate(() => {
  const node = window.app.graph.nodes.find((each) => each.type === "OSoraTimeline");
  return node.widgets.find((widget) => widget.name === "plan").value;
});

async function load(page, graph) {
  await page.evaluate((given) => window.app.loadGraphData(given), graph);
  await page.locator(SPAN).nth(2).waitFor({ timeout: READY_MS });
  await page.evaluate(() => {
    const { app } = window, node = app.graph.nodes.find((each) => each.type === "OSoraTimeline");
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [140 - node.pos[0], 120 - node.pos[1]];
    app.canvas.setDirty(true, true);
  });
  await page.waitForTimeout(1000);
}

// The view with some room around it.
async function around(page) {
  const box = await page.locator(".opensora-timeline").boundingBox();
  return { x: box.x - 10, y: box.y - 10, width: box.width + 20, height: box.height + 20 };
}

async function boxOf(page, number) {
  const box = await page.locator(SPAN).nth(number).boundingBox();
  return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
}

// Drags a span and leaves a picture of every step.
async function filmed(page, tools, number, right, shot) {
  const from = await boxOf(page, number), clip = await around(page);
  const look = () => (shot.film ? tools.shot(`timeline-film-${String(shot.taken++).padStart(2, "0")}`, { clip }) : null);
  await page.mouse.move(from.x, from.y);
  await look();
  await page.mouse.down();
  for (let step = 1; step <= 6; step++) {
    await page.mouse.move(from.x + (right * step) / 6, from.y);
    await look();
  }
  await page.mouse.up();
  await page.waitForTimeout(300);
  await look();
}

async function run(page) {
  await page.evaluate(() => {
    const { api } = window.app, seen = (window.seen = { outputs: {}, end: "", said: "" });
    api.addEventListener("executed", ({ detail }) => (seen.outputs[detail.display_node ?? detail.node] = detail.output));
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(kind, ({ detail }) => Object.assign(seen, { end: kind, said: detail.exception_message ?? "" }));
    }
  });
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(() => window.seen.end || Object.keys(window.app.lastNodeErrors ?? {}).length, null, {
    timeout: RUN_MS,
  });
  return page.evaluate(() => ({ ...window.seen, refused: Object.values(window.app.lastNodeErrors ?? {}) }));
}

module.exports = async (page, tools) => {
  const { name, vue } = tools.input;
  const kind = vue ? "vue" : "classic", shot = { film: vue, taken: 0 };
  await page.waitForFunction(() => window.app?.extensions?.some((each) => each.name === "opensora.timeline"), null, {
    timeout: READY_MS,
  });
  await page.evaluate((on) => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", on), vue);
  await load(page, await page.evaluate(async (title) => {
    const file = await window.app.api.fetchApi(`/workflow_templates/opensora/${encodeURIComponent(title)}.json`);
    return file.json();
  }, name));
  const found = { opened: await plan(page) };
  await page.locator(".opensora-timeline-ruler").click(); // the page takes up what the script has built
  const frame = (await page.locator(".opensora-timeline-track").boundingBox()).width / 5;
  await filmed(page, tools, 1, frame, shot);
  found.moved = await plan(page);
  await load(page, await page.evaluate(() => window.app.graph.serialize()));
  found.loaded = await plan(page);
  found.copied = await page.evaluate(() => {
    const { graph, canvas } = window.app, node = graph.nodes.find((each) => each.type === "OSoraTimeline");
    canvas.selectItems([node]);
    canvas.copyToClipboard([node]);
    canvas.pasteFromClipboard();
    const twin = graph.nodes.find((each) => each.type === "OSoraTimeline" && each.id !== node.id);
    const text = twin.widgets.find((widget) => widget.name === "plan").value;
    graph.remove(twin);
    canvas.deselectAll();
    return text;
  });
  await page.waitForTimeout(500);
  const second = await boxOf(page, 1);
  await page.mouse.click(second.x, second.y);
  await page.locator('.opensora-timeline-field[name="at"]').fill("2");
  await page.keyboard.press("Enter");
  await page.waitForTimeout(300);
  found.typed = await plan(page);
  await tools.shot(`timeline-before-${kind}`);
  Object.assign(found, await run(page));
  await page.locator(".opensora-timeline-film").nth(2).waitFor({ timeout: READY_MS });
  const track = await page.locator(".opensora-timeline-track").boundingBox();
  await page.mouse.click(track.x + 3.5 * frame, track.y + 40); // chooses nothing: the run's sentences show
  const ruler = await page.locator(".opensora-timeline-ruler").boundingBox();
  await page.mouse.click(ruler.x + 4.5 * frame, ruler.y + 10);
  await page.waitForTimeout(500);
  found.films = await page.locator(".opensora-timeline-film").count();
  found.caption = await page.locator(".opensora-timeline-caption").textContent();
  found.picture = await page.locator(".opensora-timeline-picture").evaluate((each) => each.style.backgroundImage);
  found.sentence = await page.locator(".opensora-timeline-sentence").textContent();
  await tools.shot(`timeline-after-${kind}`);
  if (vue) await tools.shot("timeline-help", { clip: await around(page) });
  await filmed(page, tools, 1, frame, shot);
  return found;
};
