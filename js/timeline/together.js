/**
 * What is said of all spans of a segment together; the same rules and sentences as `opensora_models/sampling/references.py`
 * and `given_input.py`, which is what a run uses. The shared cases hold both together.
 *
 * @import { Rules, Span } from "./rules.js"
 *
 * @typedef {Pick<Span, "target" | "length">} Filled
 */
import { latentsOf } from "./rules.js";

/**
 * @param {Span[]} spans of one segment, as they will be used
 * @param {number} clip latent frames of the clip
 * @param {Rules} rules
 * @returns {{ problem: string, notes: string[] }} why they cannot be used together, or ""; and what a run would say of them
 */
export function together(spans, clip, rules) {
  const usable = spans.filter((span) => !span.problem);
  const problem = usable.length ? tooMuch(usable, clip, rules) : "";
  return { problem, notes: problem ? [] : [...twice(usable), ...untrained(usable, clip, rules)] };
}

/**
 * Latent frames that more than one span writes; the later one wins there.
 *
 * @param {Filled[]} spans
 * @returns {number[]}
 */
export function overlapping(spans) {
  return [...counted(spans)].filter(([, count]) => count > 1).map(([frame]) => frame).sort((a, b) => a - b);
}

/**
 * @param {Filled[]} spans
 * @returns {Map<number, number>} how many spans write each latent frame
 */
function counted(spans) {
  /** @type {Map<number, number>} */
  const counts = new Map();
  for (const { target, length } of spans) {
    for (let frame = target; frame < target + length; frame++) counts.set(frame, (counts.get(frame) ?? 0) + 1);
  }
  return counts;
}

/**
 * @param {number[]} numbers that grow
 * @returns {string} "1, 4 to 199, 201", however many they are
 */
export function listed(numbers) {
  /** @type {[number, number][]} */
  const runs = [];
  for (const number of numbers) {
    const run = runs[runs.length - 1];
    if (run && run[1] === number - 1) run[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([first, last]) => (first === last ? String(first) : `${first} to ${last}`)).join(", ");
}

/**
 * @param {Filled[]} spans
 * @returns {string[]}
 */
function twice(spans) {
  const frames = overlapping(spans);
  if (!frames.length) return [];
  return [`References overlap at latent frames ${listed(frames)}; the later reference in the chain wins there.`];
}

/**
 * @param {Filled[]} spans
 * @param {number} clip
 * @param {Rules} rules
 * @returns {string} why a release that cannot edit given frames has nothing to make, "" where it has
 */
function tooMuch(spans, clip, rules) {
  if (rules.editable) return "";
  if (clip === 1) {
    return (
      `${rules.title} makes a single picture from words alone, without references; the nearest good value is ` +
      `${rules.first} frames.`
    );
  }
  if (counted(spans).size < clip) return "";
  return (
    `The references fill all ${clip} latent frames, so nothing is left to make; give at most ` +
    `${rules.frames(clip - 1)} frames, or sample their latent with denoise below 1.`
  );
}

/**
 * @param {Filled[]} spans
 * @param {number} clip
 * @param {Rules} rules
 * @returns {string[]} what of given frames the release has not been trained with
 */
function untrained(spans, clip, rules) {
  if (rules.anywhere) return [];
  const clips = spans.filter(({ length }) => length > 1);
  const usual = rules.takes.map((frames) => latentsOf(rules, frames));
  const said = clips
    .filter(({ length }) => !usual.includes(length))
    .map(({ length }) => `a given clip of ${length} latent frames instead of ${usual.join(" or ")}`);
  if (clips.length && spans.length > 1) said.unshift("a clip together with other references");
  const between = spans.some(({ target, length }) => target > 0 && target + length < clip);
  if (between) said.unshift("frames given between the ends of a clip");
  if (!said.length) return [];
  return [
    `An experiment: ${rules.title} was trained with pictures at the first and the last frame, or with ` +
      `${rules.takes.join(" or ")} frames of a clip at one end; not with ${[...new Set(said)].join(" or ")}.`,
  ];
}
