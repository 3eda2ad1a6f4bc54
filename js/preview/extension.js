/**
 * Shows a clip moving in the node that samples it, while it does, and lets finished videos play.
 *
 * The server sends pictures to the page that started a run, and only while previews are on; this file works without any
 * of them as well.
 *
 * @import { Message } from "./loop.js"
 */
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { nodeOf } from "../nodes.js";
import { isOfThoseInSight, rootGraph } from "../runs.js";
import { playWhenThere } from "./finished.js";
import { captionOf, modeOf } from "./loop.js";
import { Place } from "./place.js";
import { wordsOf } from "./words.js";

const EVENT = "opensora.preview";
const SETTING = "OpenSora.Preview.Mode";
const OURS = /^OSora/;
const VIDEO_NODES = ["OSoraDecodeToVideo"];
const ENDS = ["execution_start", "execution_success", "execution_error", "execution_interrupted", "reconnected"];

/** @type {Map<any, Place>} */
const places = new Map();
let running = "";

/**
 * @param {string} name
 * @returns {unknown}
 */
function setting(name) {
  return app.extensionManager?.setting?.get?.(name);
}

/** @param {Message} message */
function show(message) {
  const mode = modeOf(setting(SETTING));
  // Another workflow may be open by now, whose nodes have the same numbers.
  if (mode === "off" || !isOfThoseInSight(message)) return;
  if (message.node !== running) removeAll();
  running = message.node;
  const node = nodeOf(message.node, rootGraph());
  if (typeof node?.addDOMWidget !== "function") return;
  if (!places.has(node)) places.set(node, new Place(node, () => places.delete(node)));
  places.get(node)?.view.show(message, mode, captionOf(message, wordsOf(setting("Comfy.Locale"))));
}

function removeAll() {
  for (const place of places.values()) place.remove();
  places.clear();
  running = "";
}

/**
 * Keeps ComfyUI's still picture out of a node of ours that shows the clip moving; its own samplers keep theirs. Where
 * the node is not in sight, inside another or in app mode, the still picture is the one that is seen.
 *
 * @param {CustomEvent} event
 */
function withhold(event) {
  const shown = event.detail?.displayNodeId ?? event.detail?.nodeId;
  if (!running || String(shown) !== running || !app.canvas?.canvas?.checkVisibility?.()) return;
  const node = nodeOf(running, rootGraph());
  const inSight = places.has(node) && node.graph === app.canvas.graph;
  if (inSight && OURS.test(node.comfyClass ?? "")) event.stopImmediatePropagation();
}

// Before ComfyUI itself listens, which it does once its extensions are read: listeners are called in their order.
api.addEventListener("b_preview_with_metadata", withhold);

app.registerExtension({
  name: "opensora.preview",
  setup() {
    api.addEventListener(EVENT, (/** @type {CustomEvent<Message>} */ { detail }) => show(detail));
    for (const end of ENDS) api.addEventListener(end, removeAll);
    api.addEventListener("executing", (/** @type {CustomEvent} */ { detail }) => {
      if (running && String(detail?.display_node ?? detail?.node ?? detail) !== running) removeAll();
    });
  },
  nodeCreated(/** @type {any} */ node) {
    if (!VIDEO_NODES.includes(node.comfyClass)) return;
    const before = node.onExecuted;
    node.onExecuted = function (/** @type {any[]} */ ...given) {
      const answer = before?.apply(this, given);
      playWhenThere(node);
      return answer;
    };
  },
});
