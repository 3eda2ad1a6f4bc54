/**
 * Inputs that grow keep their places. Where the page makes a node after another one (paste, "Convert to Subgraph"), it
 * starts with the inputs of a new node and puts those that have grown behind all others, while wires are found by their
 * places: they are lost, or end at other inputs. So the grown ones go back to where the page lets them grow.
 */
import { app } from "../../scripts/app.js";

const OURS = /^OSora/;
const GROWS = "COMFY_AUTOGROW_V3";

/**
 * @param {any} definition of a node, as the server sends it
 * @returns {string[]} names of the inputs that grow
 */
function growing(definition) {
  return Object.values(definition.input ?? {}).flatMap((inputs) =>
    Object.keys(inputs ?? {}).filter((name) => inputs[name]?.[0] === GROWS),
  );
}

/** @param {string} name "pictures.picture12" */
const numberOf = (name) => Number(/\d+$/.exec(name)?.[0] ?? 0);

/**
 * @template {{ name: string }} Input
 * @param {Input[]} inputs
 * @param {string} group
 * @returns {Input[]} with those of the group side by side in the order of their numbers, from where the first of them is
 */
function together(inputs, group) {
  const grown = inputs.filter(({ name }) => name.startsWith(`${group}.`));
  const first = inputs.findIndex((input) => grown.includes(input));
  const sorted = [...grown].sort((a, b) => numberOf(a.name) - numberOf(b.name));
  return inputs.flatMap((input, at) => (at === first ? sorted : grown.includes(input) ? [] : [input]));
}

/**
 * @param {any} node
 * @param {string[]} groups
 */
function putBack(node, groups) {
  const inputs = groups.reduce((/** @type {any[]} */ all, group) => together(all, group), node.inputs ?? []);
  if (inputs.every((input, at) => input === node.inputs[at])) return;
  node.inputs.splice(0, inputs.length, ...inputs);
  // Older pages keep wires at the inputs, which have moved; newer ones by their places, as the other node had them.
  const links = node.graph?._links ?? node.graph?.links;
  inputs.forEach((input, at) => {
    const link = Object.hasOwn(input, "link") && input.link != null ? links?.get?.(input.link) : null;
    if (link?.target_id === node.id) link.target_slot = at;
  });
}

/**
 * The page looks after wires that have gone one frame later, and throws where the node has gone with them.
 *
 * @param {any} prototype
 */
function bearRemoval(prototype) {
  const before = prototype.getInputLink;
  if (typeof before !== "function") return;
  prototype.getInputLink = function (/** @type {any[]} */ ...given) {
    return this.graph ? before.apply(this, given) : null;
  };
}

app.registerExtension({
  name: "opensora.growing",
  beforeRegisterNodeDef(/** @type {any} */ { prototype }, /** @type {any} */ definition) {
    const groups = OURS.test(definition.name) ? growing(definition) : [];
    if (!groups.length) return;
    bearRemoval(prototype);
    const before = prototype.onConfigure;
    prototype.onConfigure = function (/** @type {any[]} */ ...given) {
      const answer = before?.apply(this, given);
      putBack(this, groups);
      return answer;
    };
  },
});
