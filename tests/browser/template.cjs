// As a person would: open a template of the pack, press Run, and see the video in its node.
"use strict";

const RUN_MS = 240000;

module.exports = async (page, tools) => {
  const { name, source, ends_in: last } = tools.input;
  await page.getByRole("button", { name: "Templates" }).first().click();
  await page.getByText(source, { exact: true }).first().click();
  await tools.shot("templates");
  const opens = (timeout) => page.waitForFunction(
    (type) => window.app.graph._nodes.some((node) => node.type === type), last, { timeout },
  );
  const card = page.getByTestId(`template-workflow-${name}`);
  await card.click();
  try {
    await opens(20000);
  } catch {
    // The page may still be laying out its list under the first click, which then does nothing.
    if (await card.isVisible()) await card.click();
    await opens(60000);
  }
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(
    () => [...document.querySelectorAll("video")].some((video) => video.readyState >= 2 && video.videoWidth > 0),
    null, { timeout: RUN_MS },
  );
  await page.waitForTimeout(500);
  await tools.shot(`template-${name}`);
  return page.evaluate(() => {
    const video = [...document.querySelectorAll("video")].find((element) => element.videoWidth > 0);
    return { width: video.videoWidth, height: video.videoHeight, seconds: video.duration };
  });
};
