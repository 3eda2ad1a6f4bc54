/**
 * Keeps what nodes were told readable after a run, for as long as it is true: newer pages take the texts of all nodes
 * away when a run ends, older ones leave those that were true of an earlier run.
 *
 * @typedef {object} Told what `native/messages.py` sends beside ComfyUI's own text of a node
 * @property {string} node
 * @property {string} text
 * @property {string | null} graph id of the workflow that runs
 */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeOf } from "./nodes.js";

const EVENT = "opensora.told";
const ENDS = ["execution_success", "execution_error", "execution_interrupted", "reconnected"];
const TEXT = "$$node-text-preview"; // ComfyUI's name of the widget that holds it

/** @type {Map<any, Told>} by node */
const told = new Map();
/** Which nodes ran, by number, and whether they were told something. */
const ran = new Map();

/** The graph whose nodes have the numbers that the server knows. */
const rootGraph = () => app.rootGraph ?? app.graph;

/** @param {string} id */
const find = (id) => nodeOf(id, rootGraph());

/** @param {any} node */
const textOf = (node) => node.widgets?.find((/** @type {any} */ widget) => widget.name === TEXT);

/** @param {Told} message */
function remember(message) {
  ran.set(message.node, true);
  const root = rootGraph();
  // Another workflow may be open by now, whose nodes have the same numbers.
  if (message.graph && root?.id && message.graph !== root.id) return;
  const node = find(message.node);
  if (node) told.set(node, message);
}

/** @param {any} node */
function takeAway(node) {
  told.delete(node);
  const text = textOf(node);
  if (text) node.removeWidget(text);
}

function endOfRun() {
  for (const [node, { node: id, text }] of told) {
    if (find(id) !== node) told.delete(node); // of a workflow that is no longer open
    else if (ran.get(id) === false) takeAway(node);
    else if (!textOf(node)) api.dispatchEvent(new CustomEvent("progress_text", { detail: { nodeId: id, text } }));
  }
  ran.clear();
}

app.registerExtension({
  name: "opensora.told",
  setup() {
    api.addEventListener(EVENT, (/** @type {CustomEvent<Told>} */ { detail }) => remember(detail));
    api.addEventListener("executing", (/** @type {CustomEvent} */ { detail }) => {
      const id = String(detail?.node ?? detail);
      if (!ran.has(id)) ran.set(id, false);
    });
    // Behind the page's own listeners, which take the texts away.
    for (const end of ENDS) api.addEventListener(end, () => setTimeout(endOfRun));
  },
});
