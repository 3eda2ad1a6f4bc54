/**
 * The menu of a wire that is dropped on nothing (with Shift, as ComfyUI comes) names a few nodes that take it: ours too.
 * ComfyUI makes these lists anew whenever nodes are registered, and cuts them to the first few of core.
 */
import { app } from "../../scripts/app.js";

const TAKE = {
  MODEL: ["OSoraSampler"],
  CLIP: ["OSoraTextEncode"],
  VAE: ["OSoraReference", "OSoraDecodeToVideo"],
  CONDITIONING: ["OSoraSampler"],
  LATENT: ["OSoraSampler", "OSoraDecodeToVideo"],
  IMAGE: ["OSoraReference"],
};
const GIVE = {
  MODEL: ["OSoraModelLoader"],
  CLIP: ["OSoraTextEncoderLoader"],
  VAE: ["OSoraVAELoader"],
  CONDITIONING: ["OSoraTextEncode"],
  LATENT: ["OSoraEmptyLatent"],
};

/** @param {Record<string, any>} lists names of nodes by the type of a wire @param {Record<string, string[]>} ours */
function add(lists, ours) {
  for (const [wire, names] of Object.entries(ours)) {
    if (!Array.isArray(lists?.[wire])) continue;
    lists[wire].push(...names.filter((name) => !lists[wire].includes(name)));
  }
}

app.registerExtension({
  name: "opensora.wires",
  beforeRegisterNodeDef() {
    const { LiteGraph } = /** @type {any} */ (window);
    add(LiteGraph?.slot_types_default_out, TAKE);
    add(LiteGraph?.slot_types_default_in, GIVE);
  },
});
