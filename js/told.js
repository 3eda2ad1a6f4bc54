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
 * @property {string} prompt_id
 * @property {string | null} graph id of the workflow that runs
 *
 * @typedef {Map<string, Told>} Texts by node, the last one told at the end
 */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeOf } from "./nodes.js";
import { cameFrom, inSight, isOfThoseInSight, pageStore, recognise, rootGraph, startedFrom, workflows } from "./runs.js";

const EVENT = "opensora.told";
const OF_A_RUN = ["execution_start", "progress_state"]; // the second also where the page was loaded since it began
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];
const LOST = "reconnected"; // a run may have ended meanwhile, or go on
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
 * Nodes that have run since the run began.
 *
 * @type {Set<string>}
 */
const ran = new Set();
/** @type {string | undefined} */
let running;

/** @param {string} id */
const find = (id) => nodeOf(id, rootGraph());

/** @param {any} node */
const textOf = (node) => node.widgets?.find((/** @type {any} */ widget) => widget.name === TEXT);

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
  } else if (workflows().includes(workflow)) {
    waiting.set(workflow.path, texts); // a tab that the page has opened again and not loaded yet
  }
  return texts;
}

/**
 * @param {string | null} graph
 * @returns {any} the workflow; of a template that is open twice the one in sight
 */
function workflowWith(graph) {
  if (!graph) return inSight();
  const isIt = (/** @type {any} */ each) =>
    (each.activeState?.id ?? textsOf(each).values().next().value?.graph) === graph;
  return workflows().find(isIt) ?? (graph === rootGraph()?.id ? inSight() : null);
}

/** @param {any} node */
function takeAway(node) {
  const text = textOf(node);
  if (text) node.removeWidget(text);
}

/** @param {Told} message of the workflow in sight */
const isOfThisGraph = ({ graph }) => !graph || !rootGraph()?.id || graph === rootGraph().id;

/** Shows what is true of the nodes in sight; those inside others are told when somebody looks inside. */
function show() {
  const texts = textsOf(inSight());
  for (const [id, message] of [...texts]) {
    if (!isOfThisGraph(message)) continue;
    const node = find(id);
    if (!node) texts.delete(id);
    else if (node.graph === app.canvas?.graph && textOf(node)?.value !== message.text)
      api.dispatchEvent(new CustomEvent("progress_text", { detail: { nodeId: id, text: message.text } }));
  }
}

function opened() {
  recognise();
  for (const message of textsOf(inSight()).values()) {
    if (message.graph === NO_ID) message.graph = rootGraph()?.id;
  }
  show();
}

/** A cleared canvas gives new nodes the numbers of those that have gone, and has another id than what an undo brings. */
function cleared() {
  const texts = textsOf(inSight());
  for (const [id, message] of [...texts]) {
    if (isOfThisGraph(message) && !find(id)) texts.delete(id);
  }
}

/** @param {Told} message */
function remember(message) {
  const { node: id, prompt_id: run, graph } = message;
  ran.add(id);
  running = run;
  const texts = textsOf(startedFrom(run, graph) ?? workflowWith(graph));
  texts.delete(id);
  texts.set(id, message);
  // The page has shown it on the node in sight that has this number, be it of another workflow or inside another node.
  const inside = id.includes(":");
  const shown = app.canvas?.graph?.getNodeById?.(inside ? pageStore()?.executionIdToCurrentId?.(id) : id);
  if (!shown || (isOfThoseInSight(message) && find(id) === shown)) return;
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

/** @param {string | undefined} run that is still heard of, or has just ended */
async function endOfRun(run) {
  const nodes = [...ran];
  const said = new Set(workflows().flatMap((each) => [...textsOf(each).values()]));
  ran.clear();
  const from = await cameFrom(run);
  // Behind the page's own listeners, which take the texts away.
  setTimeout(() => forget({ nodes, said }, run, from));
}

/**
 * @param {{ nodes: string[], said: Set<Told> }} then which had run when the run ended, and all that was said by then
 * @param {string | undefined} run
 * @param {any} from the workflow it was started from, where that is known
 */
async function forget({ nodes, said }, run, from) {
  const isOfRun = (/** @type {Told | undefined} */ each) => each?.prompt_id === run;
  const isOld = (/** @type {Told | undefined} */ each) =>
    each && said.has(each) && !isOfRun(each) && each.prompt_id !== running;
  const silent = nodes.filter((id) => workflows().some((each) => isOld(textsOf(each).get(id))));
  if (silent.length) {
    // Nodes of other workflows have the same numbers, and what they said is as true as before.
    const speaking = workflows().find((each) => [...textsOf(each).values()].some(isOfRun));
    const workflow = from ?? speaking ?? workflowWith(await graphOf(run));
    const texts = textsOf(workflow);
    for (const id of silent) {
      if (!isOld(texts.get(id))) continue; // it was said in this run, or the next one has begun
      texts.delete(id);
      const node = workflow === inSight() ? find(id) : null;
      if (node) takeAway(node);
    }
  }
  show();
}

/** For the page that is loaded next. It hears nothing while it loads: of a run only what it has said is certain then. */
function store() {
  const from = startedFrom(running);
  const isCertain = (/** @type {any} */ workflow, /** @type {Told} */ message) =>
    running === undefined || message.prompt_id === running || (from && from !== workflow);
  const kept = workflows().map((each) => [each.path, [...textsOf(each).values()].filter((one) => isCertain(each, one))]);
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
    for (const sign of OF_A_RUN) {
      api.addEventListener(sign, (/** @type {CustomEvent} */ { detail }) => (running = detail?.prompt_id ?? running));
    }
    api.addEventListener("executing", (/** @type {CustomEvent} */ { detail }) => {
      const id = detail?.node ?? detail;
      if (id != null) ran.add(String(id));
    });
    for (const end of ENDS) {
      api.addEventListener(end, (/** @type {CustomEvent} */ { detail }) => {
        endOfRun(detail?.prompt_id ?? running);
        running = undefined;
      });
    }
    api.addEventListener(LOST, () => endOfRun(running));
    api.addEventListener("graphCleared", cleared);
    // Somebody looks into a node or out of it; another tab is in sight, or the same one with other nodes.
    app.canvas?.canvas?.addEventListener("litegraph:set-graph", () => setTimeout(show));
    pageStore()?.$onAction?.((/** @type {any} */ { name, args, after }) => {
      if (name === "openWorkflow") after(() => setTimeout(opened));
      if (name === "closeWorkflow") waiting.delete(args[0]?.path); // the next one of this path is another
    }, true);
  },
});
