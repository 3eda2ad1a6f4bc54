// What the page's part sees of ComfyUI's page: tabs, nodes, a run, and the page loaded again, without any of it.
import { register } from "node:module";

// The page's own files do not lie here, and every load of the page reads ours anew.
const HOOK = `export function resolve(name, context, next) {
  const load = new URL(context.parentURL ?? "file:///").searchParams.get("load");
  const own = /\\/scripts\\/(app|api)\\.js$/.exec(name);
  if (own) return { url: "data:text/javascript,export const " + own[1] + "=globalThis.pages[" + load + "]." + own[1], shortCircuit: true };
  return next(load && name.startsWith(".") ? name + "?load=" + load : name, context);
}`;
register(`data:text/javascript,${encodeURIComponent(HOOK)}`);

const TEXT = "$$node-text-preview";
const CLEARED = "00000000-0000-0000-0000-000000000000";
const OURS = "../../js/";

globalThis.pages = [];

/** What a browser tab keeps over a reload. */
const storage = new Map();
globalThis.sessionStorage = {
  getItem: (name) => storage.get(name) ?? null,
  setItem: (name, value) => storage.set(name, value),
  removeItem: (name) => storage.delete(name),
};

/** A workflow that is open: nodes 1 and 2 in a graph. */
class Tab {
  constructor(path, id) {
    this.path = path;
    this.changeTracker = {};
    this.activeState = { id };
    this.load();
  }

  /** The page makes new nodes whenever it loads a graph. */
  load(numbers = [1, 2]) {
    this.graph = { id: this.activeState.id, getNodeById: (id) => this.nodes.get(Number(id)) ?? null };
    this.nodes = new Map(numbers.map((id) => [id, new Node(id, this.graph)]));
  }

  clear() {
    this.nodes.clear();
    this.graph.id = CLEARED;
    this.activeState = { id: CLEARED };
  }
}

class Node {
  constructor(id, graph) {
    Object.assign(this, { id, graph, widgets: [], size: [1, 1] });
  }

  removeWidget(widget) {
    this.widgets.splice(this.widgets.indexOf(widget), 1);
  }

  say(text) {
    const widget = this.widgets.find(({ name }) => name === TEXT) ?? { name: TEXT };
    if (!this.widgets.includes(widget)) this.widgets.push(widget);
    widget.value = text;
  }
}

export class Page {
  /** @param {Page | null} before what was open in it is opened again */
  constructor(before = null) {
    this.load = globalThis.pages.push(this) - 1;
    this.tabs = before ? before.tabs.map((tab) => new Tab(tab.path, tab.activeState.id)) : [];
    this.left = [];
    this.api = new EventTarget();
    this.api.fetchApi = async () => ({ ok: false });
    this.api.queuePrompt = (number, data) => this.answer(data);
    this.api.addEventListener("progress_text", ({ detail }) => this.app.canvas.graph?.getNodeById(detail.nodeId)?.say(detail.text));
    this.actions = [];
    const page = this;
    this.store = {
      get activeWorkflow() { return page.inSight; },
      get openWorkflows() { return page.tabs; },
      $onAction: (seen) => this.actions.push(seen),
    };
    this.extensions = [];
    this.app = {
      extensionManager: { workflow: this.store, setting: { get: () => undefined } },
      canvas: { canvas: new EventTarget(), get graph() { return page.inSight?.graph; } },
      get rootGraph() { return page.inSight?.graph; },
      registerExtension: (extension) => this.extensions.push(extension),
    };
    this.inSight = before ? this.tabs[before.tabs.indexOf(before.inSight)] : null;
    this.runs = 0;
  }

  async start(...files) {
    globalThis.addEventListener = (name, listener) => name === "pagehide" && this.left.push(listener);
    for (const file of files) await import(`${OURS}${file}?load=${this.load}`);
    for (const extension of this.extensions) extension.setup();
    await this.quiet();
    return this;
  }

  quiet() {
    return new Promise((go) => setTimeout(go, 10));
  }

  tell(name, detail) {
    this.api.dispatchEvent(new CustomEvent(name, { detail }));
  }

  async act(name, args, change) {
    const after = [];
    for (const action of this.actions) action({ name, args, after: (call) => after.push(call) });
    change();
    for (const call of after) call();
    await this.quiet();
  }

  async open(path, id) {
    const tab = new Tab(path, id);
    this.tabs.push(tab);
    await this.look(tab);
    return tab;
  }

  async look(tab) {
    await this.act("openWorkflow", [tab], () => {
      tab.load([...tab.nodes.keys()]);
      this.inSight = tab;
    });
  }

  async close(tab) {
    await this.act("closeWorkflow", [tab], () => this.tabs.splice(this.tabs.indexOf(tab), 1));
  }

  /**
   * Queue what is in sight, as the page does.
   *
   * @param {Promise<void>} [until] the server's answer is not read before
   */
  queue(until) {
    this.runs += 1;
    const run = `run ${this.load}.${this.runs}`;
    this.answer = async () => (await until, { prompt_id: run });
    this.graph = this.inSight.graph.id;
    this.asked = this.api.queuePrompt(0, { output: {}, workflow: { id: this.graph } });
    return run;
  }

  begin(run) {
    this.tell("execution_start", { prompt_id: run });
  }

  node(run, id, text, graph = this.graph) {
    this.tell("executing", id);
    if (!text) return;
    this.tell("progress_text", { nodeId: id, text, prompt_id: run });
    this.tell("opensora.told", { node: id, text, graph, prompt_id: run });
  }

  /** Newer pages take away all texts. */
  async end(run) {
    this.tell("execution_success", { prompt_id: run });
    for (const node of this.inSight.nodes.values()) node.widgets = [];
    await this.quiet();
  }

  async run(texts, run = this.queue()) {
    await this.asked;
    this.begin(run);
    for (const [id, text] of Object.entries(texts)) this.node(run, id, text);
    await this.end(run);
  }

  said() {
    return [...this.inSight.nodes.values()].flatMap(({ id, widgets }) => widgets.map(({ value }) => `${id} ${value}`));
  }

  /** What is told while the page loads is heard by nobody. */
  async reload(...files) {
    for (const listener of this.left) listener();
    const page = new Page(this);
    page.graph = this.graph;
    await page.start(...files);
    if (page.inSight) await page.look(page.inSight);
    return page;
  }
}
