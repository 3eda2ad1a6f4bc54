// Inputs that grow, of every node of ours that has some: their wires stay where they are when the node is copied, put into
// a subgraph, taken out again, saved and loaded, also in the order that older pages gave to copies.
"use strict";

const READY = 90000, WIRES = 3, GROWS = "COMFY_AUTOGROW_V3";

const settle = (page, time = 300) => page.waitForTimeout(time);

/** The node with wires at its first grown inputs; gives their names. */
function build(page, { type, group }) {
  return page.evaluate(([kind, name, count]) => {
    const { app, LiteGraph } = window, types = LiteGraph.registered_node_types;
    app.graph.clear();
    const add = (each) => {
      const node = LiteGraph.createNode(each);
      app.graph.add(node);
      return node;
    };
    const node = add(kind);
    node.pos = [500, 100];
    const grown = () => node.inputs.filter((input) => input.name.startsWith(`${name}.`));
    const wanted = grown()[0].type;
    const gives = Object.values(types).find((each) => each.nodeData?.input?.required && each.nodeData.output?.[0] === wanted);
    for (let at = 0; at < count; at++) {
      const source = add(gives.type ?? gives.nodeData.name);
      source.title = `source ${at}`;
      source.pos = [20, 100 + 220 * at];
      source.connect(0, node, node.inputs.indexOf(grown()[at]));
    }
    return grown().map((input) => input.name);
  }, [type, group, WIRES]);
}

/** Of every node of the type, wherever it is: which input has a wire from the output of which node. */
function wires(page, type) {
  return page.evaluate(async (kind) => {
    const { output } = await window.app.graphToPrompt();
    const title = (id) => output[id]?._meta?.title ?? id;
    return Object.values(output).filter((node) => node.class_type === kind).map((node) => Object.fromEntries(
      Object.entries(node.inputs).filter(([, value]) => Array.isArray(value)).map(([name, [id]]) => [name, title(id)]),
    ));
  }, type);
}

const load = (page, graph) => page.evaluate((given) => window.app.loadGraphData(given), graph);
const save = (page) => page.evaluate(() => (window.app.rootGraph ?? window.app.graph).serialize());

/** The same graph with what has grown behind all other inputs, but the first: as copies were saved. */
function asCopied(graph, { type, group }) {
  const node = graph.nodes.find((each) => each.type === type);
  const late = node.inputs.filter((input) => input.name.startsWith(`${group}.`)).slice(1);
  const inputs = [...node.inputs.filter((input) => !late.includes(input)), ...late];
  for (const link of graph.links) if (link[3] === node.id) link[4] = inputs.indexOf(node.inputs[link[4]]);
  node.inputs = inputs;
  return graph;
}

function copyAll(page) {
  return page.evaluate(() => {
    const { canvas, graph } = window.app;
    canvas.selectItems([...graph.nodes]);
    canvas.copyToClipboard();
    canvas.pasteFromClipboard();
  });
}

function putInside(page, type, alone) {
  return page.evaluate(([kind, only]) => {
    const { graph } = window.app;
    graph.convertToSubgraph(new Set(graph.nodes.filter((node) => !only || node.type === kind)));
  }, [type, alone]);
}

function takeOut(page) {
  return page.evaluate(() => {
    const { graph } = window.app;
    graph.unpackSubgraph(graph.nodes.find((node) => node.subgraph));
  });
}

module.exports = async (page, tools) => {
  await page.waitForFunction(() => window.app?.extensions?.some((each) => each.name === "opensora.growing"), null, {
    timeout: READY,
  });
  const nodes = await page.evaluate((grows) => Object.entries(window.LiteGraph.registered_node_types).flatMap(([type, each]) =>
    Object.values(type.startsWith("OSora") ? each.nodeData?.input ?? {} : {}).flatMap((inputs) =>
      Object.keys(inputs ?? {}).filter((name) => inputs[name]?.[0] === grows).map((group) => ({ type, group })))), GROWS);
  await page.evaluate((on) => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", on), tools.input.vue);
  const found = { nodes, seen: {} };
  for (const node of nodes) {
    const seen = (found.seen[`${node.type} ${node.group}`] = {});
    const look = async (name, change) => {
      await change();
      await settle(page);
      seen[name] = await wires(page, node.type);
    };
    seen.grown = await build(page, node);
    await look("built", () => settle(page));
    const saved = await save(page);
    await look("loaded", () => load(page, saved));
    await look("as copied", () => load(page, asCopied(saved, node)));
    await look("copied", () => copyAll(page));
    for (const alone of [true, false]) {
      const where = alone ? "alone" : "with its sources";
      await build(page, node);
      await settle(page);
      await look(`inside ${where}`, () => putInside(page, node.type, alone));
      await look(`inside ${where}, loaded`, async () => load(page, await save(page)));
      await look(`taken out ${where}`, () => takeOut(page));
    }
  }
  return found;
};
