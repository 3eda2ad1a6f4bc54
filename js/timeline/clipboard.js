/**
 * Copy and paste of a reference: kept for the page's life, so that it needs no permission and reaches other timelines.
 *
 * @import { Place } from "./plan.js"
 * @import { Span } from "./rules.js"
 */

/** @type {Place | null} */
let copied = null;

/**
 * @param {Place} place
 * @returns {boolean} that it was taken
 */
export function copy(place) {
  copied = { ...place };
  return true;
}

/**
 * @param {(place: Place) => void} add
 * @param {number} segment where it goes
 * @returns {boolean} whether there was something to paste
 */
export function paste(add, segment) {
  if (!copied) return false;
  add({ ...copied, segment });
  return true;
}

/**
 * @param {Place} place
 * @param {Span} span as it is used
 * @param {number} clip latent frames of the clip
 * @returns {Place} the same right behind it, or at the clip's end where nothing is left behind it
 */
export function duplicate(place, span, clip) {
  const target = Math.min(span.target + span.length, clip - 1);
  return { ...place, at: place.at < 0 ? target - clip : target };
}
