/**
 * Which open workflow a run was started from. The ids of graphs do not tell: a template that is opened twice has one,
 * and so have all canvases that were cleared.
 *
 * @typedef {object} OfRun what the server sends along with what it says of a run
 * @property {string} prompt_id
 * @property {string | null} graph id of the workflow that runs
 */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const STORED = "opensora.runs";
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

/**
 * By run; of one that was started before the page was loaded the workflow's path.
 *
 * @type {Map<string, any>}
 */
const started = new Map();
/**
 * Runs that have ended since the last one was asked for.
 *
 * @type {Set<string>}
 */
const over = new Set();
/**
 * Runs that the server has not given a name yet; it may speak of them before.
 *
 * @type {Set<{ graph: string, workflow: any, answer: Promise<any> }>}
 */
const asked = new Set();

/** The graph whose nodes have the numbers that the server knows. */
export const rootGraph = () => app.rootGraph ?? app.graph;

/** The page's store of workflows. */
export const pageStore = () => app.extensionManager?.workflow;

/** @returns {any} the workflow in sight */
export const inSight = () => pageStore()?.activeWorkflow;

/** @returns {any[]} the one in sight first */
export const workflows = () => [inSight(), ...(pageStore()?.openWorkflows ?? [])].filter(Boolean);

/** Paths become workflows once their tabs are back, which may be renamed or closed during the run. */
export function recognise() {
  for (const [run, path] of started) {
    const tab = typeof path === "string" && workflows().find((each) => each.path === path);
    if (tab) started.set(run, tab);
  }
}

/**
 * @param {string | undefined} run
 * @param {string | null} [graph] for a run that the server speaks of before it has answered
 * @returns {any} the workflow; undefined where nobody knows
 */
export function startedFrom(run, graph) {
  const known = run ? started.get(run) : undefined;
  if (typeof known === "string") return workflows().find((each) => each.path === known);
  return known ?? (graph ? [...asked].find((each) => each.graph === graph)?.workflow : undefined);
}

/**
 * The same of a run that has ended, which it may have done before the page has read the server's answer.
 *
 * @param {string | undefined} run
 * @returns {Promise<any>}
 */
export async function cameFrom(run) {
  const workflow = startedFrom(run);
  if (workflow || !asked.size) return workflow;
  await Promise.allSettled([...asked].map(({ answer }) => answer));
  return startedFrom(run);
}

/**
 * Whether the nodes in sight are those that the server means.
 *
 * @param {OfRun} message
 */
export function isOfThoseInSight({ prompt_id: run, graph }) {
  const workflow = startedFrom(run, graph);
  if (workflow && workflow !== inSight()) return false;
  return !graph || !rootGraph()?.id || graph === rootGraph().id;
}

const queue = api.queuePrompt;
/**
 * @param {any} number
 * @param {any} data
 * @param {any[]} more
 */
api.queuePrompt = async function (number, data, ...more) {
  for (const run of over) started.delete(run);
  over.clear();
  const graph = data?.workflow?.id;
  const workflow = inSight();
  const isKnown = graph && workflow && graph === rootGraph()?.id; // else another one has come into sight meanwhile
  const answer = Promise.resolve(queue.call(this, number, data, ...more));
  if (!isKnown) return answer;
  const remembered = answer.then((/** @type {any} */ taken) => taken?.prompt_id && started.set(taken.prompt_id, workflow));
  const sent = { graph, workflow, answer: remembered };
  asked.add(sent);
  try {
    await remembered;
    return await answer;
  } finally {
    asked.delete(sent);
  }
};

for (const end of ENDS) {
  api.addEventListener(end, (/** @type {CustomEvent} */ { detail }) => over.add(detail?.prompt_id));
}

// Nothing runs and nothing waits: what was taken off the queue, or ended unheard, is over too. It may be old news.
api.addEventListener("execution_start", (/** @type {CustomEvent} */ { detail }) => over.delete(detail?.prompt_id));
api.addEventListener("status", (/** @type {CustomEvent} */ { detail }) => {
  if (detail?.exec_info?.queue_remaining === 0) for (const run of started.keys()) over.add(run);
});

for (const [run, path] of JSON.parse(sessionStorage.getItem(STORED) ?? "[]")) started.set(run, path);
sessionStorage.removeItem(STORED);

addEventListener("pagehide", () => {
  const kept = [...started].filter(([run]) => !over.has(run)).map(([run, from]) => [run, from.path ?? from]);
  if (kept.length) sessionStorage.setItem(STORED, JSON.stringify(kept));
  else sessionStorage.removeItem(STORED);
});
