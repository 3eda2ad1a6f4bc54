/**
 * What the graph tells of the clip before anything has run: release and length from the node that makes the latent,
 * pictures from the nodes at the sockets. Where the graph does not tell, the last run does.
 *
 * @import { Sheet } from "./pictures.js"
 * @import { Before, Clip } from "./view.js"
 *
 * @typedef {object} Ran what `nodes/timeline.py` sends
 * @property {string} plan the text that ran
 * @property {string | null} release
 * @property {number} latent_frames
 * @property {number[]} lengths
 * @property {Before[]} before
 * @property {string[]} said
 * @property {Omit<Sheet, "url"> & FileOnServer} [sheet]
 * @property {Record<string, string>} [wires] what was connected then, where that is known
 *
 * @typedef {{ filename: string, subfolder: string, type: string }} FileOnServer
 * @typedef {(path: string) => string} Address of a path on the server
 * @typedef {(node: any) => any} Kept what the page keeps of a node's last run
 */
import { drawingOf } from "./drawing.js";
import { isWired, originOf, settingsOf, wireAt } from "./graph.js";
import { UNKNOWN, latentsOf, rulesOf } from "./rules.js";

const DEFAULT_LATENTS = 20;
const DEFAULT_RATE = 24;
const VIDEO = /\.(mp4|webm|mov|mkv|m4v)( \[\w+\])?$/i;
const PICTURE = /\.(png|jpe?g|webp|gif|bmp|tiff?|avif)( \[\w+\])?$/i;
const SOCKET = /^(?:pictures\.)?picture(\d+)$/;

/**
 * @param {any} node
 * @param {Ran | null} ran
 * @param {Address} address
 * @param {Kept} kept
 * @returns {Omit<Clip, "moved">}
 */
export function clipOf(node, ran, address, kept) {
  const origin = originOf(node, "clip_latent");
  const made = settingsOf(origin);
  // A connected MODEL chooses the release, whatever the menu says; which, only a run tells.
  const rules = isWired(origin, "model") ? rulesOf(ran?.release) : rulesOf(made.version ?? ran?.release);
  const frames = typeof made.frames === "number" ? made.frames : 0;
  const latents = frames > 0 && rules !== UNKNOWN ? latentsOf(rules, frames) : ran?.latent_frames;
  const known = stillTrue(node, ran);
  return {
    rules,
    latents: latents ?? DEFAULT_LATENTS,
    guessed: latents === undefined,
    fixed: fixedText(node, ran),
    connected: connectedOf(node),
    rate: DEFAULT_RATE,
    aspect: made.width > 0 && made.height > 0 ? made.width / made.height : 0,
    lengths: known.lengths,
    thumbnails: thumbnailsOf(node, address, kept),
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
 * @returns {string | null} the plan that comes by wire, as far as the page knows it; null where the widget counts
 */
function fixedText(node, ran) {
  if (!isWired(node, "plan")) return null;
  const { plan } = settingsOf(node);
  return typeof plan === "string" ? plan : ran?.plan ?? "";
}

/**
 * @param {any} node
 * @returns {number[] | null} numbers of the sockets that have a wire, in order; null where pictures come as a batch
 */
function connectedOf(node) {
  if (isWired(node, "batch")) return null;
  return (node.inputs ?? [])
    .filter((/** @type {any} */ input) => input.link != null && SOCKET.test(input.name))
    .map((/** @type {any} */ input) => Number(SOCKET.exec(input.name)?.[1]))
    .sort((/** @type {number} */ a, /** @type {number} */ b) => a - b);
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
    const wire = wireAt(node, slot);
    if (!wire) return;
    // Inside a subgraph the wire may come from its inputs, whose number stands for the node outside.
    const origin = node.graph.getNodeById(wire.origin_id) ?? originOf(node, input.name);
    const number = SOCKET.exec(input.name)?.[1];
    found[number === undefined ? input.name : `picture${number}`] =
      `${origin?.id ?? wire.origin_id} ${wire.origin_slot} ${settingsOf(origin).image}`;
  });
  return found;
}

/**
 * @param {any} node
 * @returns {Record<string, string>} the same of the picture sockets alone, without the files, which may change
 */
export function picturesAt(node) {
  const sockets = Object.entries(wiresOf(node)).filter(([name]) => SOCKET.test(name));
  return Object.fromEntries(sockets.map(([name, wire]) => [name, wire.split(" ", 2).join(" ")]));
}

/**
 * Pictures of the nodes at the sockets, by the number of their socket or their place in the batch. What a node shows only
 * once it has run shows here from then on.
 *
 * @param {any} node
 * @param {Address} address
 * @param {Kept} kept
 * @returns {Record<number, string>}
 */
function thumbnailsOf(node, address, kept) {
  /** @type {Record<number, string>} */
  const found = {};
  for (const { name } of node.inputs ?? []) {
    const number = SOCKET.exec(name)?.[1];
    const origin = number === undefined ? null : originOf(node, name);
    if (origin) found[Number(number)] = picturesOf(origin, address, kept)[0] ?? "";
  }
  const batch = originOf(node, "batch");
  if (batch) picturesOf(batch, address, kept).forEach((url, number) => (found[number] = url));
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
 * @param {Kept} kept
 * @returns {string[]} what a node shows, else the file it has chosen, else what it will draw
 */
function picturesOf(origin, address, kept) {
  const shown = (origin.imgs ?? []).map((/** @type {any} */ image) => image.src);
  if (shown.length) return shown;
  const { image: file } = settingsOf(origin);
  if (typeof file === "string" && PICTURE.test(file)) return [address(viewOf(fileOf(file)))];
  const files = kept(origin)?.images ?? [];
  if (files.length) return files.map((/** @type {FileOnServer} */ each) => address(viewOf(each)));
  const drawing = drawingOf(origin);
  return drawing ? [drawing] : [];
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
