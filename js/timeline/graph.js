/**
 * What the page's graph tells of a node: what is at the other end of its wires, and what its widgets hold.
 */

/** The origin of wires that come into a subgraph from outside. */
const FROM_OUTSIDE = "-10"; // a number on older pages
const DEEPEST = 20;

/**
 * @param {any} node
 * @param {string} input
 * @returns {any} the node at the other end of an input's wire, or null
 */
export function originOf(node, input) {
  return originAt(node, (node?.inputs ?? []).findIndex((/** @type {any} */ each) => each.name === input), 0);
}

/**
 * @param {any} node
 * @param {number} slot
 * @param {number} depth
 * @returns {any}
 */
function originAt(node, slot, depth) {
  if (slot < 0 || depth > DEEPEST) return null;
  const link = wireAt(node, slot);
  const origin = link ? node.graph.getNodeById(link.origin_id) ?? null : null;
  if (origin) return origin.type === "Reroute" ? originAt(origin, 0, depth + 1) : origin;
  if (String(link?.origin_id) !== FROM_OUTSIDE) return null;
  const [host, name] = [hostOf(node.graph), node.graph.inputs?.[link.origin_slot]?.name];
  return host ? originAt(host, host.inputs.findIndex((/** @type {any} */ each) => each.name === name), depth + 1) : null;
}

/**
 * @param {any} node
 * @param {number} slot
 * @returns {any} the wire that ends at an input, in the graph of the node. A node that holds a subgraph answers the page's
 *   own question for it with wires inside.
 */
export function wireAt(node, slot) {
  const wire = node.graph && node.inputs?.[slot]?.link;
  return wire == null ? null : node.graph.getLink?.(wire) ?? null;
}

/**
 * @param {any} subgraph
 * @returns {any} the one node that holds it; null where there are several, which may differ
 */
function hostOf(subgraph) {
  const root = subgraph.rootGraph;
  if (!root) return null;
  const graphs = [root, ...(root.subgraphs?.values?.() ?? [])];
  const hosts = graphs.flatMap((graph) => (graph.nodes ?? []).filter((/** @type {any} */ each) => each.subgraph?.id === subgraph.id));
  return hosts.length === 1 ? hosts[0] : null;
}

/**
 * @param {any} node
 * @param {string} input
 * @returns {boolean} whether a wire ends there
 */
export function isWired(node, input) {
  return (node?.inputs ?? []).some((/** @type {any} */ each) => each.name === input && each.link != null);
}

/**
 * @param {any} node
 * @returns {Record<string, any>} values by the widgets' names; of those that come by wire what a Primitive node holds
 */
export function settingsOf(node) {
  /** @type {Record<string, any>} */
  const found = {};
  for (const { name, value } of node?.widgets ?? []) {
    const origin = isWired(node, name) ? originOf(node, name) : null;
    if (!isWired(node, name)) found[name] = value;
    else if (String(origin?.type).startsWith("Primitive")) found[name] = settingsOf(origin).value;
  }
  return found;
}

/**
 * @param {any} node
 * @returns {string} what the page keeps a node's outputs under
 */
export function locatorOf(node) {
  const { graph } = node;
  return graph?.rootGraph && graph !== graph.rootGraph ? `${graph.id}:${node.id}` : String(node.id);
}
