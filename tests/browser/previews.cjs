// A clip moves in the sampler while it is sampled, and nothing of that is left when it is done; then the video plays.
"use strict";

const READY = 90000;
const SAMPLER = "OSoraSampler";
const VIEW = ".opensora-preview";

const setting = (page, name, value) =>
  page.evaluate(([id, chosen]) => window.app.extensionManager.setting.set(id, chosen), [name, value]);

/** What a saved workflow would hold of the sampler, its widgets, and how many pictures of ComfyUI are on it. */
const sampler = (page) => page.evaluate((type) => {
  const node = window.app.graph.nodes.find((each) => each.type === type);
  const saved = node.serialize();
  return {
    size: [...node.size].map(Math.round), saved: { size: [...saved.size].map(Math.round), values: saved.widgets_values },
    widgets: node.widgets.length, stills: Object.keys(window.app.nodePreviewImages ?? {}).length,
  };
}, SAMPLER);

async function run(page, steps, seed) {
  await page.evaluate(([type, count, number]) => {
    const node = window.app.graph.nodes.find((each) => each.type === type);
    const set = (name, value) => (node.widgets.find((widget) => widget.name === name).value = value);
    set("steps", count);
    set("seed", number);
    return window.app.queuePrompt(0);
  }, [SAMPLER, steps, seed]);
}

const gone = (page) => page.waitForFunction((view) => !document.querySelector(view), VIEW, { timeout: READY });

/** Different frames seen in a while, and the line below. */
async function watch(page, enough = 3, limit = READY) {
  await page.locator(`${VIEW} canvas[data-frame]`).first().waitFor({ timeout: limit, state: "attached" });
  return page.evaluate(async ([view, wanted]) => {
    const frames = new Set();
    const end = performance.now() + 60000; // of a slow machine
    while (performance.now() < end && frames.size < wanted) {
      const canvas = document.querySelector(`${view} canvas`);
      if (canvas?.dataset.frame) frames.add(canvas.dataset.frame);
      await new Promise((again) => setTimeout(again, 40));
    }
    const canvas = document.querySelector(`${view} canvas`);
    const box = canvas?.getBoundingClientRect();
    return {
      frames: frames.size, views: document.querySelectorAll(view).length, caption: document.querySelector(`${view} span`)?.textContent,
      canvas: canvas && [canvas.width, canvas.height], shown: box && [Math.round(box.width), Math.round(box.height)],
    };
  }, [VIEW, enough]);
}

const video = (page) => page.evaluate(() => {
  const shown = [...document.querySelectorAll("video")].find((each) => each.videoWidth > 0);
  return shown && { playing: !shown.paused, loop: shown.loop, muted: shown.muted };
});

const source = (page) =>
  page.evaluate(() => [...document.querySelectorAll("video")].find((each) => each.videoWidth > 0)?.currentSrc);

/** How many clips are made at once: more of them take longer. */
const clips = (page, count) => page.evaluate((value) => {
  const node = window.app.graph.nodes.find((each) => each.type === "OSoraEmptyLatent");
  node.widgets.find((widget) => widget.name === "batch_size").value = value;
}, count);

async function interrupt(page) {
  await page.evaluate(() => window.app.api.interrupt(null));
  await gone(page);
}

async function see(page, tools) {
  const { graph, vue, more } = tools.input;
  const kind = vue ? "vue" : "classic";
  await setting(page, "Comfy.VueNodes.Enabled", vue);
  await setting(page, "Comfy.Execution.PreviewMethod", "latent2rgb");
  await setting(page, "OpenSora.Preview.Mode", "loop");
  await page.evaluate((given) => window.app.loadGraphData(given, true, true, "previews"), graph);
  await page.waitForTimeout(1500);
  await page.evaluate((type) => {
    const node = window.app.graph.nodes.find((each) => each.type === type);
    window.app.canvas.ds.scale = 1;
    window.app.canvas.ds.offset = [300 - node.pos[0], 150 - node.pos[1]];
    window.app.canvas.setDirty(true, true);
  }, SAMPLER);
  await page.waitForTimeout(800);
  const found = { before: await sampler(page) };
  const other = more ? await (await page.context().browser().newContext()).newPage() : null;
  if (other) {
    await other.goto(page.url(), { timeout: READY });
    await other.waitForFunction(() => Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 0, null, { timeout: READY });
    await other.waitForTimeout(2000);
    await other.evaluate((given) => window.app.loadGraphData(given, true, true, "previews"), graph);
    await page.bringToFront();
  }

  if (other) await clips(page, 8); // until the page is back, on a busy machine too
  await run(page, 1000, 1);
  found.loop = await watch(page);
  found.during = await sampler(page);
  await tools.shot(`preview-${kind}`);
  if (other) {
    found.other = await other.locator(VIEW).count();
    await other.close();
    // A busy ComfyUI may notice that the old page has gone only after the new one has come under the same name, and then
    // forgets the new one, for every message: as a person would, load it again.
    for (let load = 0; load < 4 && !found.reloaded; load++) {
      await page.reload({ timeout: READY });
      await page.waitForFunction(() => Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 0, null, { timeout: READY });
      found.reloaded = await watch(page, 3, 25000).catch(() => null);
    }
  }
  await interrupt(page);
  if (other) await clips(page, 1);
  await page.waitForTimeout(500);
  found.interrupted = await sampler(page);

  await setting(page, "OpenSora.Preview.Mode", "sheet");
  await page.waitForTimeout(500); // until the server has the setting
  await run(page, 1000, 2);
  found.sheet = await watch(page, 1);
  await tools.shot(`preview-sheet-${kind}`);
  await interrupt(page);

  await setting(page, "OpenSora.Preview.Mode", "off");
  await page.waitForTimeout(500);
  await run(page, 8, 3);
  found.off = await page.evaluate(async (view) => {
    let seen = 0;
    const end = performance.now() + 120000;
    while (performance.now() < end && ![...document.querySelectorAll("video")].some((video) => video.readyState >= 2)) {
      seen += document.querySelectorAll(view).length;
      await new Promise((again) => setTimeout(again, 40));
    }
    return seen;
  }, VIEW);
  await page.waitForTimeout(1500);
  found.video = await video(page);
  const first = await source(page);
  await run(page, 8, 4);
  await page.waitForFunction((old) => {
    const shown = [...document.querySelectorAll("video")].find((each) => each.videoWidth > 0);
    return shown && shown.currentSrc !== old && shown.readyState >= 2;
  }, first, { timeout: READY });
  await page.waitForTimeout(1500);
  found.again = await video(page);
  found.sources = [first, await source(page)];
  found.after = await sampler(page);
  await page.evaluate(() => {
    const node = window.app.graph.nodes.find((each) => each.type === "OSoraDecodeToVideo");
    window.app.canvas.ds.offset = [100 - node.pos[0], 100 - node.pos[1]];
    window.app.canvas.setDirty(true, true);
  });
  await page.waitForTimeout(500);
  await tools.shot(`preview-done-${kind}`);
  return found;
}

const CHANGED = ["Comfy.VueNodes.Enabled", "Comfy.Execution.PreviewMethod", "OpenSora.Preview.Mode"];

/** Other scenarios share the server, which keeps settings: left on, ComfyUI's still pictures would make nodes larger. */
module.exports = async (page, tools) => {
  const before = await page.evaluate(
    (names) => names.map((name) => [name, window.app.extensionManager.setting.get(name)]), CHANGED,
  );
  try {
    return await see(page, tools);
  } finally {
    for (const [name, value] of before) await setting(page, name, value);
    await page.waitForTimeout(500); // until the server has them
  }
};
