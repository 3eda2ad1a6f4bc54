/**
 * Latent frames and strengths as places on the track and back; no DOM.
 *
 * @import { Place } from "./plan.js"
 * @import { Rules, Span } from "./rules.js"
 *
 * @typedef {{ clip: number, width: number, height: number }} Track latent frames of the clip, and pixels
 * @typedef {{ left: number, top: number, width: number, height: number }} Box
 * @typedef {"move" | "start" | "end" | "strength"} Grip
 */
import { snap } from "./rules.js";

/** Pixels at a span's sides and top that resize it, and the height of one that holds nothing. */
export const EDGE = 6;
const LOWEST = 14;
const STRENGTH_STEP = 0.01;

/**
 * A span on the track: the stronger it may be changed, the lower it is.
 *
 * @param {Span} span
 * @param {Track} track
 * @returns {Box}
 */
export function boxOf(span, track) {
  const height = LOWEST + (1 - span.strength) * (track.height - LOWEST);
  const frame = track.width / track.clip;
  return { left: span.target * frame, top: track.height - height, width: span.length * frame, height };
}

/**
 * The outline of a reference whose frames have strengths of their own, as a clip path: each frame as high as a span of
 * its strength.
 *
 * @param {number[]} strengths
 * @param {number} height pixels of the track
 * @returns {string}
 */
export function outlineOf(strengths, height) {
  const tops = strengths.map((strength) => Math.round(strength * (height - LOWEST)));
  const points = tops.flatMap((top, frame) => [frame, frame + 1].map((edge) => [edge, top]));
  const corners = [[0, height], ...points, [strengths.length, height]];
  return `polygon(${corners.map(([edge, top]) => `${(edge * 100) / strengths.length}% ${top}px`).join(", ")})`;
}

/**
 * Which part of a span a point takes hold of; narrow spans can always be moved by their middle third.
 *
 * @param {Box} box
 * @param {number} x from the box's left
 * @param {number} y from the box's top
 * @param {boolean} editable whether the release knows strengths
 * @returns {Grip}
 */
export function gripAt(box, x, y, editable) {
  const edge = Math.min(EDGE, box.width / 3);
  if (x < edge) return "start";
  if (x > box.width - edge) return "end";
  return editable && y < EDGE ? "strength" : "move";
}

/**
 * The topmost span at a point, or -1; later ones lie over earlier ones.
 *
 * @param {Box[]} boxes
 * @param {number} x
 * @param {number} y
 */
export function hit(boxes, x, y) {
  for (let at = boxes.length - 1; at >= 0; at--) {
    const { left, top, width, height } = boxes[at];
    if (left <= x && x < left + width && top <= y && y < top + height) return at;
  }
  return -1;
}

/**
 * What a drag makes of a reference. Starts stay inside the clip and on the release's groups.
 *
 * @param {Place} place as it was when the drag began
 * @param {Span} span as it was used then
 * @param {Grip} grip
 * @param {number} right pixels dragged
 * @param {number} down
 * @param {Track} track
 * @param {Rules} rules
 * @returns {Partial<Place>} only the fields that are others now
 */
export function dragged(place, span, grip, right, down, track, rules) {
  const frames = Math.round((right * track.clip) / track.width);
  if (grip === "strength") {
    const moved = span.strength + down / Math.max(1, track.height - LOWEST);
    const strength = Number((Math.round(clamp(moved, 0, 1) / STRENGTH_STEP) * STRENGTH_STEP).toFixed(2));
    return strength === place.strength ? {} : { strength };
  }
  if (!frames) return {};
  // What counted from the end goes on doing so.
  const atOf = (/** @type {number} */ target) => (place.at < 0 ? target - track.clip : target);
  if (grip === "end") {
    const length = clamp(span.length + frames, 1, Math.min(track.clip - span.target, span.room));
    return length === place.length ? {} : { length };
  }
  if (grip === "start") {
    const end = span.target + span.length;
    const target = snap(clamp(span.target + frames, Math.max(0, span.target - span.source), end - 1), track.clip, rules.align);
    if (target === span.target || target >= end) return {};
    const start = place.from >= 0 ? span.source : span.room < Infinity ? -span.room : place.from;
    const from = start + target - span.target;
    return { at: atOf(target), length: end - target, ...(from === place.from ? {} : { from }) };
  }
  const target = snap(clamp(span.target + frames, 0, track.clip - 1), track.clip, rules.align);
  const at = atOf(target);
  return at === place.at ? {} : { at };
}

/**
 * What an arrow key makes of a reference: one latent frame, or one group where the release has them.
 *
 * @param {Place} place
 * @param {Span} span
 * @param {string} key
 * @param {boolean} shift resizes instead of moving, and with up and down takes ten hundredths
 * @param {number} clip
 * @param {Rules} rules
 * @returns {Partial<Place>}
 */
export function keyed(place, span, key, shift, clip, rules) {
  const right = key === "ArrowRight" ? 1 : key === "ArrowLeft" ? -1 : 0;
  const down = key === "ArrowDown" ? 1 : key === "ArrowUp" ? -1 : 0;
  const track = { clip, width: clip, height: LOWEST + 100 };
  if (down) return rules.editable ? dragged(place, span, "strength", 0, down * (shift ? 10 : 1), track, rules) : {};
  if (!right) return {};
  return dragged(place, span, shift ? "end" : "move", right * (shift ? 1 : rules.align ?? 1), 0, track, rules);
}

/**
 * @param {number} value
 * @param {number} low
 * @param {number} high
 */
export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/**
 * Latent frames that get a mark on the ruler: every first, second, fifth, tenth … so that marks stay apart.
 *
 * @param {Track} track
 * @param {number} apart pixels between two marks
 * @returns {number[]}
 */
export function marks(track, apart = 44) {
  const least = (apart * track.clip) / track.width;
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((each) => each >= least) ?? 2000;
  return Array.from({ length: Math.ceil(track.clip / step) }, (_, at) => at * step);
}
