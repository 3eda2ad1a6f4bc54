/**
 * What the graph tells of the clip before anything has run: release and length from the node that makes the latent,
 * pictures from the nodes at the sockets. What the last run told goes before, as long as the wires are the same.
 *
 * @import { Clip } from "./view.js"
 *
 * @typedef {object} Ran what `native/sampling/timeline_inputs.py` sends
 * @property {string | null} release
 * @property {number} latent_frames
 * @property {number[]} lengths
 * @property {{ target_start: number, length: number }[]} before
 */
import { latentsOf, rulesOf } from "./rules.js";

const DEFAULT_LATENTS = 20;
const DEFAULT_RATE = 24;

/**
 * @param {any} node
 * @param {Ran | null} ran
 * @param {(path: string) => string} address of a path on the server
 * @returns {Clip}
 */
export function clipOf(node, ran, address) {
  const made = widgetsOf(originOf(node, "clip_latent"));
  const rules = rulesOf(made.version ?? ran?.release);
  const frames = typeof made.frames === "number" ? made.frames : 0;
  const known = ran?.latent_frames ?? DEFAULT_LATENTS;
  /** @type {Record<number, number>} */
  const lengths = {};
  ran?.lengths.forEach((length, number) => {
    if (length) lengths[number] = length;
  });
  return {
    rules,
    latents: frames > 0 && rules.id ? latentsOf(rules, frames) : known,
    rate: DEFAULT_RATE,
    lengths,
    thumbnails: thumbnailsOf(node, address),
    before: ran?.before ?? [],
  };
}

/**
 * @param {any} node
 * @param {string} input
 * @returns {any} the node at the other end of an input's wire, or null
 */
function originOf(node, input) {
  const slot = (node.inputs ?? []).findIndex((/** @type {any} */ each) => each.name === input);
  return slot < 0 ? null : node.getInputNode?.(slot) ?? null;
}

/**
 * @param {any} node
 * @returns {Record<string, any>} values by the widgets' names
 */
function widgetsOf(node) {
  return Object.fromEntries((node?.widgets ?? []).map((/** @type {any} */ widget) => [widget.name, widget.value]));
}

/**
 * Pictures of Load Image and its like, by the number of their socket. Others show after they have run, if the page keeps
 * their previews.
 *
 * @param {any} node
 * @param {(path: string) => string} address
 * @returns {Record<number, string>}
 */
function thumbnailsOf(node, address) {
  /** @type {Record<number, string>} */
  const found = {};
  for (const { name } of node.inputs ?? []) {
    const number = /^(?:pictures\.)?picture(\d+)$/.exec(name)?.[1];
    const origin = number === undefined ? null : originOf(node, name);
    if (!origin) continue;
    const file = widgetsOf(origin).image;
    const shown = origin.imgs?.[0]?.src;
    found[Number(number)] = shown ?? (typeof file === "string" ? address(viewOf(file)) : "");
  }
  return found;
}

/**
 * @param {string} file "folder/name.png [input]"
 * @returns {string} where the server shows it
 */
function viewOf(file) {
  const [, path, type] = /^(.*?)(?: \[(input|output|temp)\])?$/s.exec(file) ?? ["", file, "input"];
  const cut = path.lastIndexOf("/");
  const query = new URLSearchParams({
    filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(0, cut)), type: type ?? "input",
  });
  return `/view?${query}`;
}
