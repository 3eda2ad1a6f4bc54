/**
 * What the graph tells of the clip before anything has run: release and length from the node that makes the latent,
 * pictures from the nodes at the sockets. Where the graph does not tell, the last run does.
 *
 * @import { Sheet } from "./pictures.js"
 * @import { Clip } from "./view.js"
 *
 * @typedef {object} Ran what `nodes/timeline.py` sends
 * @property {string} plan the text that ran
 * @property {string | null} release
 * @property {number} latent_frames
 * @property {number[]} lengths
 * @property {{ target_start: number, length: number }[]} before
 * @property {string[]} said
 * @property {Omit<Sheet, "url"> & FileOnServer} [sheet]
 * @property {Record<string, string>} [wires] what was connected then, where that is known
 *
 * @typedef {{ filename: string, subfolder: string, type: string }} FileOnServer
 * @typedef {(path: string) => string} Address of a path on the server
 */
import { latentsOf, rulesOf } from "./rules.js";

const DEFAULT_LATENTS = 20;
const DEFAULT_RATE = 24;
const VIDEO = /\.(mp4|webm|mov|mkv|m4v)( \[\w+\])?$/i;
const SOCKET = /^(?:pictures\.)?picture(\d+)$/;

/**
 * @param {any} node
 * @param {Ran | null} ran
 * @param {Address} address
 * @returns {Clip}
 */
export function clipOf(node, ran, address) {
  const origin = originOf(node, "clip_latent");
  const made = settingsOf(origin);
  // A connected MODEL chooses the release, whatever the menu says.
  const rules = rulesOf((isWired(origin, "model") && ran?.release) || made.version || ran?.release);
  const frames = typeof made.frames === "number" ? made.frames : 0;
  const known = stillTrue(node, ran);
  return {
    rules,
    latents: frames > 0 && rules.id ? latentsOf(rules, frames) : ran?.latent_frames ?? DEFAULT_LATENTS,
    rate: DEFAULT_RATE,
    aspect: made.width > 0 && made.height > 0 ? made.width / made.height : 0,
    lengths: known.lengths,
    thumbnails: thumbnailsOf(node, address),
    videos: videosOf(node, address),
    sheet: ran?.sheet ? { ...ran.sheet, strips: known.strips, url: address(viewOf(ran.sheet)) } : null,
    ran: ran?.plan ?? "",
    said: ran?.said ?? [],
    before: originOf(node, "references") ? ran?.before ?? [] : [],
  };
}

/**
 * @param {any} node
 * @param {Ran | null} ran
 * @returns {{ lengths: Record<number, number>, strips: Record<string, [number, number]> }} what a run told of references
 *   whose sockets hold the same as then
 */
function stillTrue(node, ran) {
  const now = wiresOf(node);
  /** @type {Record<number, number>} */
  const lengths = {};
  /** @type {Record<string, [number, number]>} */
  const strips = {};
  ran?.lengths.forEach((length, number) => {
    const changed = ["batch", `picture${number}`].some((name) => ran.wires && ran.wires[name] !== now[name]);
    if (!length || changed) return;
    lengths[number] = length;
    if (ran.sheet?.strips[number]) strips[number] = ran.sheet.strips[number];
  });
  return { lengths, strips };
}

/**
 * @param {any} node
 * @returns {Record<string, string>} by socket, which node's output is there and the file it has chosen
 */
export function wiresOf(node) {
  /** @type {Record<string, string>} */
  const found = {};
  (node.inputs ?? []).forEach((/** @type {any} */ input, /** @type {number} */ slot) => {
    const origin = input.link == null || !node.graph ? null : node.getInputNode?.(slot);
    if (!origin) return;
    const output = node.getInputLink?.(slot)?.origin_slot;
    const number = SOCKET.exec(input.name)?.[1];
    found[number === undefined ? input.name : `picture${number}`] = `${origin.id} ${output} ${settingsOf(origin).image}`;
  });
  return found;
}

/**
 * @param {any} node
 * @param {string} input
 * @returns {any} the node at the other end of an input's wire, or null
 */
function originOf(node, input) {
  const slot = (node.inputs ?? []).findIndex((/** @type {any} */ each) => each.name === input);
  // A node that is just made is in no graph yet, and the newest page throws where it is asked for its wires.
  return slot < 0 || !node.graph ? null : node.getInputNode?.(slot) ?? null;
}

/**
 * @param {any} node
 * @param {string} input
 * @returns {boolean} whether a wire ends there
 */
function isWired(node, input) {
  return (node?.inputs ?? []).some((/** @type {any} */ each) => each.name === input && each.link != null);
}

/**
 * @param {any} node
 * @returns {Record<string, any>} values by the widgets' names, without those that come by wire
 */
function settingsOf(node) {
  /** @type {any[]} */
  const widgets = (node?.widgets ?? []).filter((/** @type {any} */ widget) => !isWired(node, widget.name));
  return Object.fromEntries(widgets.map((widget) => [widget.name, widget.value]));
}

/**
 * Pictures of Load Image and its like, by the number of their socket or their place in the batch. Others show after the
 * timeline has run, or if the page keeps their previews.
 *
 * @param {any} node
 * @param {Address} address
 * @returns {Record<number, string>}
 */
function thumbnailsOf(node, address) {
  /** @type {Record<number, string>} */
  const found = {};
  for (const { name } of node.inputs ?? []) {
    const number = SOCKET.exec(name)?.[1];
    const origin = number === undefined ? null : originOf(node, name);
    if (origin) found[Number(number)] = picturesOf(origin, address)[0] ?? "";
  }
  const batch = originOf(node, "batch");
  if (batch) picturesOf(batch, address).forEach((url, number) => (found[number] = url));
  return found;
}

/**
 * Files of Load Video, behind the node that takes the frames out of them.
 *
 * @param {any} node
 * @param {Address} address
 * @returns {Record<number, string>} by the number of their socket
 */
function videosOf(node, address) {
  /** @type {Record<number, string>} */
  const found = {};
  for (const { name } of node.inputs ?? []) {
    const number = SOCKET.exec(name)?.[1];
    const frames = number === undefined ? null : originOf(node, name);
    const file = settingsOf((frames && originOf(frames, "video")) ?? frames).file;
    if (typeof file === "string" && VIDEO.test(file)) found[Number(number)] = address(viewOf(fileOf(file)));
  }
  return found;
}

/**
 * @param {any} origin
 * @param {Address} address
 * @returns {string[]} what a node shows, else the file it has chosen
 */
function picturesOf(origin, address) {
  const shown = (origin.imgs ?? []).map((/** @type {any} */ image) => image.src);
  const file = settingsOf(origin).image;
  return shown.length || typeof file !== "string" ? shown : [address(viewOf(fileOf(file)))];
}

/**
 * @param {string} name "folder/name.png [input]"
 * @returns {FileOnServer}
 */
function fileOf(name) {
  const [, path, type] = /^(.*?)(?: \[(input|output|temp)\])?$/s.exec(name) ?? ["", name, "input"];
  const cut = path.lastIndexOf("/");
  return { filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(0, cut)), type: type ?? "input" };
}

/**
 * @param {FileOnServer} file
 * @returns {string} where the server shows it
 */
function viewOf({ filename, subfolder, type }) {
  return `/view?${new URLSearchParams({ filename, subfolder, type })}`;
}
