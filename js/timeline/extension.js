/**
 * Puts the view onto Open-Sora Timeline. The truth is the node's text widget `plan`, which works without this file; the
 * view adds nothing to saved workflows and nothing to what is queued.
 *
 * @import { Ran } from "./sources.js"
 * @import { Host } from "./view.js"
 */
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { locatorOf } from "./graph.js";
import { Moved } from "./moved.js";
import { showInPanel } from "./panel.js";
import { clipOf, picturesAt, wiresOf } from "./sources.js";
import { addStyle } from "./style.js";
import { TimelineView } from "./view.js";
import { wordsOf } from "./words.js";

const NODE = "OSoraTimeline";
const TOLD = "opensora_timeline";
const HEIGHT = 298;
const LOOK_MS = 300;

/**
 * @param {any} node
 */
function addView(node) {
  const plan = node.widgets?.find((/** @type {any} */ widget) => widget.name === "plan");
  if (!plan || typeof node.addDOMWidget !== "function") return;
  addStyle();
  /** @type {Ran | null} */
  let ran = null;
  // The page makes nodes anew when it undoes or opens another tab, and keeps what they gave.
  const lastRun = () => (ran ??= toldIn(keptOf(node)));
  const moved = new Moved();
  /** @type {Host} */
  const host = {
    read: () => String(plan.value ?? ""),
    write: (/** @type {string} */ text) => {
      plan.value = text;
      plan.callback?.(text);
      app.graph?.setDirtyCanvas?.(true, true);
    },
    clip: () => ({
      ...clipOf(node, lastRun(), (path) => api.apiURL(path), keptOf),
      moved: moved.look(picturesAt(node), host.read()),
    }),
    words: wordsOf(app.extensionManager?.setting?.get("Comfy.Locale")),
  };
  const make = () => new TimelineView(host);
  const view = make();
  const widget = node.addDOMWidget("timeline", "OSORA_TIMELINE_VIEW", view.root, {
    serialize: false,
    getMinHeight: () => HEIGHT,
    hideOnZoom: false,
  });
  widget.serialize = false; // the option alone keeps it out of the prompt, but not out of saved workflows
  let stop = () => {};
  // Not for nodes that never come into a graph: the page makes one for every copy.
  chain(node, "onAdded", () => {
    stop();
    stop = follow(view, () => takePlace(node, view.root));
  });
  showInPanel(widget, make, (other) => {
    const end = follow(other, () => end()); // what the panel has thrown away does not come back
  });
  chain(node, "onExecuted", (/** @type {any} */ output) => {
    const told = toldIn(output);
    if (!told) return;
    ran = { ...told, wires: wiresOf(node) };
    if (!view.busy) view.render(); // else the next look does
  });
  chain(node, "onRemoved", () => stop());
}

/**
 * @param {any} node
 * @returns {any} what the page keeps of its last run
 */
function keptOf(node) {
  return app.nodeOutputs?.[locatorOf(node)];
}

/**
 * @param {any} output of the node, as the page keeps it
 * @returns {Ran | null}
 */
function toldIn(output) {
  const told = output?.[TOLD]?.[0];
  return typeof told === "string" ? JSON.parse(told) : null;
}

/**
 * Looks whether the text, the wires or the clip are others than before: the page has no event for all the ways in which
 * they change (typing, undo, a loaded workflow, a widget of another node).
 *
 * @param {TimelineView} view
 * @param {() => unknown} lost tries to bring it back where the page does not show it, and says whether it could
 * @returns {() => void} ends it
 */
function follow(view, lost) {
  let seen = "";
  const timer = setInterval(() => {
    if (document.hidden || !(view.root.isConnected || lost())) return;
    const clip = view.host.clip();
    const now = JSON.stringify({ ...clip, rules: clip.rules.id, width: view.track.offsetWidth });
    if ((now === seen && view.host.read() === view.drawn) || view.busy) return;
    seen = now;
    view.render();
  }, LOOK_MS);
  return () => clearInterval(timer);
}

/**
 * The newest page makes a node anew when it undoes and goes on showing the widget's element of the old one.
 *
 * @param {any} node
 * @param {HTMLElement} root its own
 * @returns {boolean} whether that is shown now
 */
function takePlace(node, root) {
  if (!node.graph || node.graph !== app.canvas?.graph) return false;
  const old = document.querySelector(`[data-node-id="${node.id}"] .opensora-timeline`);
  old?.replaceWith(root);
  return Boolean(old);
}

/**
 * Adds to a method of one node what happens after it.
 *
 * @param {any} node
 * @param {string} name
 * @param {(...given: any[]) => void} after
 */
function chain(node, name, after) {
  const before = node[name];
  node[name] = function (/** @type {any[]} */ ...given) {
    const answer = before?.apply(this, given);
    after(...given);
    return answer;
  };
}

app.registerExtension({
  name: "opensora.timeline",
  nodeCreated(/** @type {any} */ node) {
    if (node.comfyClass === NODE) addView(node);
  },
});
