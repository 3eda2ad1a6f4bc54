/**
 * Copy and paste of a reference: kept for the page's life, so that it needs no permission and reaches other timelines.
 *
 * @import { Place } from "./plan.js"
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
 * @returns {Place} the same right behind it
 */
export function duplicate(place) {
  return { ...place, at: place.at + place.length };
}
