// Opens ComfyUI's page in a headless browser, runs one scenario in it, and prints what happened as JSON.
//
// Scenario file: module.exports = async (page, tools) => value. `tools.shot(name, options)` saves a picture among the
// artefacts, `tools.reload()` loads the page again, `tools.input` is the JSON given on standard input. The answer:
// {value, errors, failed, foreign}.
"use strict";

const fs = require("fs");
const path = require("path");
const { chromium } = require(process.env.OPENSORA_DRIVER);

const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
];
const READY_MS = 90000;

function watch(page, origin) {
  const seen = { errors: [], failed: [], foreign: [] };
  page.on("console", (message) => {
    const address = message.location().url || "";
    if (message.type() === "error") seen.errors.push(`${message.text()} (${address})`);
  });
  page.on("pageerror", (error) => seen.errors.push(`uncaught: ${error.message}`));
  page.on("response", (answer) => {
    if (answer.status() >= 400) seen.failed.push(`${answer.status()} ${answer.url()}`);
  });
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(origin) && /^(https?|wss?):/.test(url) && !url.startsWith(origin.replace("http", "ws"))) {
      seen.foreign.push(url);
    }
  });
  return seen;
}

function keepOurs(seen) {
  const ours = (line) => line.includes("opensora") || line.startsWith("uncaught");
  for (const list of Object.values(seen)) list.splice(0, list.length, ...list.filter(ours));
}

async function ready(page, seen) {
  await page.waitForFunction(
    // Reading `app.graph` this early would itself be logged as an error.
    () => window.app?.extensionManager && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 0,
    null, { timeout: READY_MS },
  );
  await page.waitForTimeout(2000); // the extensions' setup runs after the node types are known
  keepOurs(seen); // until here the page also opened a workflow of its own and looked for the models of that
}

async function main() {
  const [url, scenario, artefacts] = process.argv.slice(2);
  const browser = await chromium.launch({
    executablePath: process.env.OPENSORA_BROWSER, headless: true, args: FLAGS,
  });
  try {
    const page = await browser.newPage({ viewport: { width: 1440, height: 900 } });
    const seen = watch(page, url);
    await page.goto(url, { timeout: READY_MS });
    await ready(page, seen);
    const tools = {
      input: JSON.parse(fs.readFileSync(0, "utf8")),
      reload: async () => {
        await page.reload({ timeout: READY_MS });
        await ready(page, seen);
      },
      shot: (name, options) =>
        page.screenshot({ path: path.join(artefacts, `${name}.png`), timeout: READY_MS, ...options }),
    };
    let value, failure;
    try {
      value = await require(path.resolve(scenario))(page, tools);
    } catch (error) {
      failure = String(error.stack || error);
      await tools.shot(`failure-${path.basename(scenario, ".cjs")}`);
    }
    process.stdout.write(JSON.stringify({ value, failure, ...seen }));
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  process.stderr.write(String(error.stack || error));
  process.exit(1);
});
