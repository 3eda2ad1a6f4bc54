/**
 * What a release makes of a plan: frames and latent frames, groups, and where spans really land. The same rules as
 * `opensora_models/sampling/masks.py` and `releases/known.py`; the shared cases hold both together.
 *
 * @import { Place } from "./plan.js"
 *
 * @typedef {object} Rules
 * @property {string} id
 * @property {string} title
 * @property {number | null} align latent frames that places are snapped to
 * @property {boolean} editable whether a frame may be given with a strength
 * @property {boolean} anywhere whether it was trained with frames at other places than the ends
 * @property {number[]} takes frames it was trained to continue a clip from
 * @property {number} first frames of its shortest clip
 * @property {(latent: number) => number} frameOf the first frame a latent frame holds
 * @property {(latents: number) => number} frames frames of a clip of so many latent frames
 *
 * @typedef {object} Span
 * @property {number} entry which of the plan's references
 * @property {number} reference
 * @property {number} source latent frame in the reference
 * @property {number} target latent frame in the clip
 * @property {number} length
 * @property {number} room latent frames of the reference from `source` on, Infinity where nobody knows
 * @property {number} strength
 * @property {string[]} notes sentences on it
 * @property {string} problem one sentence on why it cannot be used, or ""
 */

const GROUP = 5;

/**
 * @param {number} step frames a further group adds
 * @returns {Pick<Rules, "frameOf" | "frames">}
 */
function grouped(step) {
  const shared = 17 - step;
  return {
    frameOf: (latent) => {
      const inside = latent % GROUP;
      return Math.floor(latent / GROUP) * step + (inside ? 1 + (inside - 1) * 4 : 0);
    },
    frames: (latents) => {
      const [groups, rest] = [Math.floor(latents / GROUP), latents % GROUP];
      const ragged = rest ? 4 * (rest - 1) + 1 : 0;
      return groups ? 17 + (groups - 1) * step + (rest ? ragged - shared : 0) : ragged;
    },
  };
}

/** @type {Pick<Rules, "frameOf" | "frames">} The first frame has a latent frame of its own. */
const causal = {
  frameOf: (latent) => (latent ? 4 * (latent - 1) + 1 : 0),
  frames: (latents) => (latents - 1) * 4 + 1,
};
/** @type {Pick<Rules, "frameOf" | "frames">} */
const strided = { frameOf: (latent) => latent * 4, frames: (latents) => (latents === 1 ? 1 : latents * 4) };

const anything = { editable: true, anywhere: true, takes: [17], first: 17 };
const given = { align: null, editable: false, anywhere: false };
/** @type {Rules[]} */
export const RELEASES = [
  { id: "1.2", title: "Open-Sora 1.2", align: GROUP, ...anything, ...grouped(17) },
  { id: "1.3", title: "Open-Sora 1.3", align: null, ...anything, ...grouped(16) },
  { id: "2.0", title: "Open-Sora 2.0", ...given, takes: [33, 65], first: 5, ...causal },
  { id: "2.0 high compression", title: "Open-Sora 2.0 high compression", ...given, takes: [32, 64], first: 8, ...strided },
];
/** @type {Rules} Where the release is not known yet nothing is snapped, and frames are latent frames. */
export const UNKNOWN = {
  id: "", title: "", align: null, ...anything, frameOf: (latent) => latent, frames: (n) => n,
};

/**
 * @param {string | null | undefined} id
 * @returns {Rules}
 */
export function rulesOf(id) {
  return RELEASES.find((rules) => rules.id === id) ?? UNKNOWN;
}

/**
 * Latent frames of a clip of so many frames: the fewest that give them back.
 *
 * @param {Rules} rules
 * @param {number} frames
 */
export function latentsOf(rules, frames) {
  let latents = 1;
  while (rules.frames(latents) < frames && latents < 100000) latents += 1;
  return latents;
}

/**
 * The group boundary nearest to a start; halves go down, and the last one leaves a whole group behind it.
 *
 * @param {number} start
 * @param {number} length latent frames of what it starts in
 * @param {number | null} align
 */
export function snap(start, length, align) {
  if (!align) return start;
  const group = Math.floor(start / align);
  const next = start % align > align / 2 && group < Math.floor(length / align) - 1;
  return (group + (next ? 1 : 0)) * align;
}

/**
 * Where one reference lands.
 *
 * @param {Place} place
 * @param {number} entry
 * @param {number | undefined} available latent frames of the reference; undefined where nobody knows yet
 * @param {number} clip latent frames of the clip
 * @param {Rules} rules
 * @returns {Span}
 */
export function spanOf(place, entry, available, clip, rules) {
  const whole = available ?? Math.max(place.length + Math.max(place.from, 0), -place.from);
  const problems = [
    outside(place.from, whole, `from which reference ${place.reference} is taken`, "reference"),
    outside(place.at, clip, `where reference ${place.reference} is to start`, "clip"),
    uneditable(place, rules),
  ];
  const problem = problems.find((each) => each) ?? "";
  const from = modulo(place.from, whole);
  const at = modulo(problem ? Math.min(Math.max(place.at, -clip), clip - 1) : place.at, clip);
  const [source, target] = [snap(from, whole, rules.align), snap(at, clip, rules.align)];
  const length = Math.max(1, Math.min(place.length, clip - target, whole - source));
  const room = available === undefined ? Infinity : whole - source;
  const span = { entry, reference: place.reference, source, target, length, room, strength: place.strength, problem };
  return { ...span, notes: problem ? [] : notesOn(span, place, at, from, rules) };
}

/**
 * @param {Omit<Span, "notes">} span
 * @param {Place} place
 * @param {number} at
 * @param {number} from
 * @param {Rules} rules
 * @returns {string[]} the sentences a run would say
 */
function notesOn(span, place, at, from, rules) {
  const who = `Reference ${span.reference}`;
  const last = span.target + span.length - 1;
  const where = span.length === 1 ? `latent frame ${span.target}` : `latent frames ${span.target} to ${last}`;
  const notes = [`${who} fills ${where}, ${span.strength ? `edited with strength ${span.strength}` : "kept as it is"}.`];
  const starts = /** @type {[string, number, number][]} */ ([
    ["start in the clip", at, span.target],
    ["start in the reference", from, span.source],
  ]);
  for (const [name, asked, used] of starts) {
    if (asked === used) continue;
    notes.push(
      `${who}: the ${name} was moved from latent frame ${asked} to ${used}, the nearest group of ${rules.align}.`,
    );
  }
  if (span.length < place.length) {
    notes.push(`${who} was cut from ${place.length} to ${span.length} latent frames.`);
  }
  return notes;
}

/**
 * @param {number} number
 * @param {number} length
 */
function modulo(number, length) {
  return ((number % length) + length) % length;
}

/**
 * @param {number} start
 * @param {number} length
 * @param {string} what
 * @param {string} where
 */
function outside(start, length, what, where) {
  if (-length <= start && start < length) return "";
  return (
    `Latent frame ${start}, ${what}, lies outside the ${where} of ${length} latent frames; the nearest good value ` +
    `is ${start < 0 ? 0 : length - 1}.`
  );
}

/**
 * @param {Pick<Place, "strength">} place
 * @param {Rules} rules
 * @returns {string} why a strength cannot be used, "" where it can
 */
export function uneditable(place, rules) {
  if (rules.editable || !place.strength) return "";
  return (
    `${rules.title} has one time for all frames, so a frame is given as it is or made freely; the strength ` +
    `${place.strength} was asked for, the nearest good value is 0.`
  );
}

/**
 * What later spans write over, for each span: runs of latent frames of the clip.
 *
 * @param {Pick<Span, "target" | "length" | "problem">[]} spans
 * @returns {[number, number][][]} start and length of every run
 */
export function overwritten(spans) {
  /** @type {Set<number>} */
  const later = new Set();
  /** @type {[number, number][][]} */
  const found = spans.map(() => []);
  for (let number = spans.length - 1; number >= 0; number--) {
    const { target, length, problem } = spans[number];
    if (problem) continue;
    for (let frame = target; frame < target + length; frame++) {
      const runs = found[number];
      const last = runs[runs.length - 1];
      if (!later.has(frame)) later.add(frame);
      else if (last && last[0] + last[1] === frame) last[1] += 1;
      else runs.push([frame, 1]);
    }
  }
  return found;
}
