/**
 * Nodes of the page by the numbers that the server knows them by: without a page.
 */

/**
 * @param {string} id of a node while it runs, "9:5" for node 5 inside node 9
 * @param {any} root the graph
 * @returns {any} the node; null where the graph has none
 */
export function nodeOf(id, root) {
  let graph = root;
  /** @type {any} */
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById?.(Number(part)) ?? graph?.getNodeById?.(part) ?? null;
    if (!node) return null;
    graph = node.subgraph;
  }
  return node;
}
