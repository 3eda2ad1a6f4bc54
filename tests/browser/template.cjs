// As a person would: search for a template of the pack, open it, press Run, and see the video in its node.
"use strict";

const RUN_MS = 240000;

module.exports = async (page, tools) => {
  const { name, words, ends_in: last } = tools.input;
  await page.getByRole("button", { name: "Templates" }).first().click();
  const search = page.getByRole("dialog").getByPlaceholder(/^Search/).first();
  await search.fill(words);
  await page.waitForTimeout(2500); // the list is laid out, and pictures come in
  await tools.shot("templates");
  const first = await page.evaluate(() =>
    [...document.querySelectorAll('[data-testid^="template-workflow-"]')].slice(0, 8)
      .map((found) => found.dataset.testid.replace("template-workflow-", "")),
  );
  await search.fill(name);
  const opens = (timeout) => page.waitForFunction(
    (type) => window.app.graph._nodes.some((node) => node.type === type), last, { timeout },
  );
  const card = page.getByTestId(`template-workflow-${name}`);
  await card.waitFor();
  await page.waitForTimeout(500);
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
  }).then((video) => ({ ...video, first }));
};
