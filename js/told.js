/**
 * Keeps what nodes were told readable after a run, for as long as it is true: newer pages take the texts of all nodes
 * away when a run ends, older ones leave those that were true of an earlier run, and all make other nodes when a
 * workflow comes back into sight, when something is undone, and when the page is loaded again.
 *
 * A text lives as long as the page keeps the pictures of a workflow: while its tab is open. It outlives a reload in the
 * browser tab's own storage, and is written into no workflow.
 *
 * @typedef {object} Told what `native/messages.py` sends beside ComfyUI's own text of a node
 * @property {string} node
 * @property {string} text
 * @property {string | null} graph id of the workflow that runs
 *
 * @typedef {Map<string, Told>} Texts by node, the last one told at the end
 */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeOf } from "./nodes.js";

const EVENT = "opensora.told";
const ENDS = ["execution_success", "execution_error", "execution_interrupted", "reconnected"];
const TEXT = "$$node-text-preview"; // ComfyUI's name of the widget that holds it
const STORED = "opensora.told";
const NO_ID = "00000000-0000-0000-0000-000000000000"; // of a cleared canvas, until the page loads it again

/**
 * By what the page itself keeps of a workflow while it is open.
 *
 * @type {WeakMap<object, Texts>}
 */
const told = new WeakMap();
/**
 * By path: of workflows that were open before the page was loaded and have not been in sight since.
 *
 * @type {Map<string, Texts>}
 */
const waiting = new Map();
/**
 * Which nodes have run since the run began, and what they were told.
 *
 * @type {Map<string, Told | null>}
 */
const ran = new Map();

/** The graph whose nodes have the numbers that the server knows. */
const rootGraph = () => app.rootGraph ?? app.graph;

/** @param {string} id */
const find = (id) => nodeOf(id, rootGraph());

/** @param {any} node */
const textOf = (node) => node.widgets?.find((/** @type {any} */ widget) => widget.name === TEXT);

/** The page's store of workflows. */
const pageStore = () => app.extensionManager?.workflow;

/** @returns {any[]} the one in sight first */
const workflows = () => [pageStore()?.activeWorkflow, ...(pageStore()?.openWorkflows ?? [])].filter(Boolean);

/**
 * @param {any} workflow
 * @returns {Texts}
 */
function textsOf(workflow) {
  const place = workflow?.changeTracker;
  const texts = (place && told.get(place)) ?? waiting.get(workflow?.path) ?? new Map();
  if (place) {
    told.set(place, texts);
    waiting.delete(workflow.path);
  }
  return texts;
}

/**
 * @param {string | null} graph
 * @returns {any} the workflow; of a template that is open twice the one in sight
 */
function workflowOf(graph) {
  if (!graph) return pageStore()?.activeWorkflow;
  const isIt = (/** @type {any} */ each) =>
    (each.activeState?.id ?? textsOf(each).values().next().value?.graph) === graph;
  return workflows().find(isIt) ?? (graph === rootGraph()?.id ? pageStore()?.activeWorkflow : null);
}

/** @param {Told} message */
const isInSight = ({ graph }) => !graph || !rootGraph()?.id || graph === rootGraph().id;

/** @param {any} node */
function takeAway(node) {
  const text = textOf(node);
  if (text) node.removeWidget(text);
}

/** Shows what is true of the nodes in sight; those inside others are told when somebody looks inside. */
function show() {
  const texts = textsOf(pageStore()?.activeWorkflow);
  for (const [id, message] of [...texts]) {
    if (!isInSight(message)) continue;
    const node = find(id);
    if (!node) texts.delete(id);
    else if (node.graph === app.canvas?.graph && textOf(node)?.value !== message.text)
      api.dispatchEvent(new CustomEvent("progress_text", { detail: { nodeId: id, text: message.text } }));
  }
}

function opened() {
  for (const message of textsOf(pageStore()?.activeWorkflow).values()) {
    if (message.graph === NO_ID) message.graph = rootGraph()?.id;
  }
  show();
}

/** @param {Told} message */
function remember(message) {
  const { node: id, graph } = message;
  ran.set(id, message);
  const texts = textsOf(workflowOf(graph));
  texts.delete(id);
  texts.set(id, message);
  // The page has shown it on the node in sight that has this number, be it of another workflow or inside another node.
  const inside = id.includes(":");
  const shown = app.canvas?.graph?.getNodeById?.(inside ? pageStore()?.executionIdToCurrentId?.(id) : id);
  if (!shown || (isInSight(message) && find(id) === shown)) return;
  takeAway(shown);
  show();
}

/**
 * @param {string | undefined} run
 * @returns {Promise<string | null>} id of the workflow that ran; null where the server does not know
 */
async function graphOf(run) {
  const answer = run ? await api.fetchApi(`/jobs/${encodeURIComponent(run)}`).catch(() => null) : null;
  return answer?.ok ? ((await answer.json()).workflow_id ?? null) : null;
}

/**
 * @param {Map<string, Told | null>} nodes that have run
 * @param {string | undefined} run
 */
async function endOfRun(nodes, run) {
  const silent = [...nodes.keys()].filter((id) => !nodes.get(id) && workflows().some((each) => textsOf(each).has(id)));
  if (silent.length) {
    // Nodes of other workflows have the same numbers, and what they said is as true as before.
    const graph = [...nodes.values()].find(Boolean)?.graph ?? (await graphOf(run));
    const workflow = workflowOf(graph);
    const texts = textsOf(workflow);
    for (const id of silent) {
      if (ran.get(id) && ran.get(id) === texts.get(id)) continue; // the next run has begun
      texts.delete(id);
      const node = workflow === pageStore()?.activeWorkflow ? find(id) : null;
      if (node) takeAway(node);
    }
  }
  show();
}

/** For the page that is loaded next. It hears nothing while it loads: of a run only what it has said is certain then. */
function store() {
  const certain = (/** @type {Told} */ message) => !ran.size || ran.get(message.node) === message;
  const kept = workflows().map((each) => [each.path, [...textsOf(each).values()].filter(certain)]);
  sessionStorage.setItem(STORED, JSON.stringify(kept.filter(([, texts]) => texts.length)));
}

function takeUp() {
  /** @type {[string, Told[]][]} */
  const kept = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
  sessionStorage.removeItem(STORED);
  for (const [path, texts] of kept) waiting.set(path, new Map(texts.map((message) => [message.node, message])));
}

app.registerExtension({
  name: "opensora.told",
  setup() {
    takeUp();
    addEventListener("pagehide", store);
    api.addEventListener(EVENT, (/** @type {CustomEvent<Told>} */ { detail }) => remember(detail));
    api.addEventListener("executing", (/** @type {CustomEvent} */ { detail }) => {
      const id = detail?.node ?? detail;
      if (id != null && !ran.has(String(id))) ran.set(String(id), null);
    });
    for (const end of ENDS) {
      api.addEventListener(end, (/** @type {CustomEvent} */ { detail }) => {
        const nodes = new Map(ran);
        ran.clear();
        // Behind the page's own listeners, which take the texts away.
        setTimeout(() => endOfRun(nodes, detail?.prompt_id));
      });
    }
    // A cleared canvas gives new nodes the numbers of those that have gone.
    api.addEventListener("graphCleared", () => textsOf(pageStore()?.activeWorkflow).clear());
    // Somebody looks into a node or out of it; another tab is in sight, or the same one with other nodes.
    app.canvas?.canvas?.addEventListener("litegraph:set-graph", () => setTimeout(show));
    pageStore()?.$onAction?.((/** @type {any} */ { name, after }) => {
      if (name === "openWorkflow") after(() => setTimeout(opened));
    }, true);
  },
});
