/**
 * What stands on the track: spans, those of other segments and of the chain before as they are, and what is written over.
 *
 * @import { Plan } from "./plan.js"
 * @import { Track } from "./geometry.js"
 * @import { Span } from "./rules.js"
 * @import { Before, Clip } from "./view.js"
 */
import { across, element } from "./elements.js";
import { boxOf, outlineOf } from "./geometry.js";
import { filmOf } from "./pictures.js";
import { overwritten, spanOf } from "./rules.js";

const HUE = 208;
const HUE_STEP = 67;

/**
 * @param {Plan} plan
 * @param {Clip} clip
 * @param {(segment: number) => boolean} wanted
 * @returns {Span[]} those of some segments, as they will be used
 */
export function spansOf(plan, clip, wanted) {
  return plan.references
    .map((place, entry) => ({ place, entry }))
    .filter(({ place }) => wanted(place.segment))
    .map(({ place, entry }) => {
      const span = spanOf(place, entry, clip.lengths[place.reference], clip.latents, clip.rules);
      const lacking = unconnected(place.reference, clip.connected);
      return lacking ? { ...span, problem: lacking, notes: [] } : span;
    });
}

/**
 * @param {number} number of a reference
 * @param {number[] | null} connected sockets with a wire, in order; null where nobody knows
 * @returns {string} why it cannot be used, "" where it can
 */
export function unconnected(number, connected) {
  if (!connected || connected.includes(number)) return "";
  const asked = `The plan asks for reference ${number}, but`;
  if (!connected.length) return `${asked} no picture is connected; connect at least 1.`;
  const distance = (/** @type {number} */ known) => Math.abs(known - number);
  const nearest = connected.reduce((best, known) => (distance(known) < distance(best) ? known : best));
  return `${asked} nothing is connected to picture${number}; the nearest good value is ${nearest}.`;
}

/**
 * @param {Span} span
 * @param {Clip} clip
 * @param {Track} size
 */
export function spanElement(span, clip, size) {
  const found = element("div", "span");
  found.dataset.entry = String(span.entry);
  found.style.setProperty("--hue", String(HUE + HUE_STEP * span.reference));
  // Not to be focused itself: it is made anew after every change, and the keys belong to the whole view.
  found.setAttribute("role", "img");
  if (span.problem) found.classList.add("unusable");
  const film = filmOf(clip, span, (size.width * span.length) / size.clip, size.height);
  if (film) found.append(film);
  found.append(element("span", "number", String(span.reference)));
  if (span.strength) found.append(element("span", "strength", String(span.strength)));
  put(found, span, size);
  return found;
}

/**
 * Moves an element to where its span is.
 *
 * @param {HTMLElement} found
 * @param {Span} span
 * @param {Track} size
 */
export function put(found, span, { clip, height }) {
  const box = boxOf(span, { clip, width: 100, height });
  Object.assign(found.style, {
    left: `${box.left}%`, width: `${box.width}%`, top: `${box.top}px`, height: `${box.height}px`,
  });
  const told = span.problem || span.notes.join("\n");
  found.title = told;
  found.setAttribute("aria-label", told);
}

/**
 * Hatches what later spans write over.
 *
 * @param {Span[]} spans
 * @param {HTMLElement[]} elements
 */
export function hatch(spans, elements) {
  overwritten(spans).forEach((runs, number) => {
    for (const [start, length] of runs) {
      const found = element("div", "covered");
      across(found, start - spans[number].target, length, spans[number].length);
      elements[number].append(found);
    }
  });
}

/**
 * A span of another segment: shown where it would be, not moved.
 *
 * @param {Span} span
 * @param {number} segment
 * @param {number} latents
 * @param {string} words
 */
export function elsewhereElement(span, segment, latents, words) {
  const found = element("div", "elsewhere", segment < 0 ? "…" : String(segment));
  across(found, span.target, span.length, latents);
  found.title = words;
  return found;
}

/**
 * A reference that came with the chain: shown with the strengths of its frames, not moved.
 *
 * @param {Before} reference
 * @param {Track} size
 * @param {string} words
 */
export function beforeElement({ target_start, length, strengths }, { clip, height }, words) {
  const found = element("div", "before");
  across(found, target_start < 0 ? target_start + clip : target_start, length, clip);
  found.title = words;
  const course = strengths?.some(Boolean) ? courseOf(strengths) : "";
  if (!strengths || !course) return found;
  found.style.clipPath = outlineOf(strengths, height);
  found.append(element("span", "strength", course));
  found.title = `${words} ${course}`;
  return found;
}

/**
 * @param {number[]} strengths
 * @returns {string} the first and the last one, or the only one
 */
function courseOf(strengths) {
  const said = [strengths[0], strengths[strengths.length - 1]].map((each) => String(Number(each.toFixed(2))));
  return strengths.every((each) => each === strengths[0]) ? said[0] : said.join(" → ");
}
