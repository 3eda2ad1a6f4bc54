// Templates in app mode: only the inputs a person needs, a Run button, and the video beside them.
"use strict";

const RUN_MS = 200000;

module.exports = async (page, tools) => {
  const seen = {};
  const toggle = () => page.evaluate(() => window.app.extensionManager.command.execute("Comfy.ToggleLinear"));
  for (const [name, graph] of Object.entries(tools.input.graphs)) {
    await page.evaluate(([given, title]) => window.app.loadGraphData(given, true, true, title), [graph, name]);
    await page.waitForTimeout(1000);
    await page.evaluate((steps) => {
      const widgets = window.app.graph._nodes.flatMap((node) => node.widgets ?? []);
      for (const widget of widgets.filter((one) => one.name === "steps")) widget.value = steps;
    }, tools.input.steps);
    await toggle();
    const inputs = page.getByTestId("linear-widgets");
    await inputs.waitFor({ timeout: 20000 });
    await page.waitForTimeout(1500);
    const tour = page.getByRole("button", { name: "Skip" }); // newer pages offer one the first time
    if (await tour.isVisible()) await tour.click();
    await tools.shot(`app-${name}`);
    const shown = await inputs.innerText();
    const values = await inputs.locator("textarea, input").evaluateAll((fields) => fields.map((field) => field.value));
    await page.getByRole("button", { name: "Run" }).last().click();
    const video = page.getByTestId("linear-video-output").first();
    await video.waitFor({ timeout: RUN_MS });
    const size = await video.evaluate(async (element) => {
      const player = element.matches("video") ? element : element.querySelector("video");
      while (!player.videoWidth) await new Promise((again) => setTimeout(again, 100));
      return { width: player.videoWidth, seconds: player.duration };
    });
    await tools.shot(`app-run-${name}`);
    seen[name] = { shown, values, ...size };
    await toggle();
    await page.waitForTimeout(500);
  }
  return seen;
};
