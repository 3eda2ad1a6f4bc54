/**
 * Pictures of references: cells of the sheet the last run left, or before a run the pictures at the sockets.
 *
 * @import { Span } from "./rules.js"
 * @import { Clip } from "./view.js"
 *
 * @typedef {object} Sheet as `sampling/film.py` makes it
 * @property {string} url
 * @property {number} columns
 * @property {number} rows
 * @property {number} width of a cell in pixels
 * @property {number} height
 * @property {Record<string, [number, number]>} strips first cell and number of cells by reference
 */
import { element } from "./elements.js";

const MOST_TILES = 60;
const SQUARE = 1;

/**
 * The cell that shows a latent frame of a reference.
 *
 * @param {[number, number]} strip
 * @param {number} source
 * @param {number} length latent frames of the reference
 */
export function cellOf([first, count], source, length) {
  const last = Math.max(1, length - 1);
  return first + Math.round((Math.min(Math.max(source, 0), last) * (count - 1)) / last);
}

/**
 * Puts the picture of one latent frame of a reference on an element.
 *
 * @param {HTMLElement} found
 * @param {Clip} clip
 * @param {number} reference
 * @param {number} source
 * @returns {boolean} whether there is one
 */
export function putPicture(found, clip, reference, source) {
  const { sheet, thumbnails, lengths } = clip;
  const strip = sheet?.strips[reference];
  const url = strip && sheet ? sheet.url : thumbnails[reference];
  found.style.backgroundImage = url ? `url("${url}")` : "";
  if (strip && sheet) {
    const cell = cellOf(strip, source, lengths[reference] ?? strip[1]);
    const [column, row] = [cell % sheet.columns, Math.floor(cell / sheet.columns)];
    found.style.backgroundSize = `${sheet.columns * 100}% ${sheet.rows * 100}%`;
    found.style.backgroundPosition = `${share(column, sheet.columns)}% ${share(row, sheet.rows)}%`;
  } else {
    found.style.backgroundSize = "cover";
    found.style.backgroundPosition = "center";
  }
  return Boolean(url);
}

/**
 * @param {number} at
 * @param {number} count
 */
function share(at, count) {
  return count > 1 ? (at * 100) / (count - 1) : 0;
}

/**
 * @param {Clip} clip
 * @returns {number} width of a picture by its height
 */
export function aspectOf({ sheet, aspect }) {
  return sheet ? sheet.width / sheet.height : aspect || SQUARE;
}

/**
 * A span's pictures side by side, each the one of its place; nothing where there is no picture.
 *
 * @param {Clip} clip
 * @param {Span} span
 * @param {number} width of the span in pixels
 * @param {number} height of the track in pixels
 * @returns {HTMLElement | null}
 */
export function filmOf(clip, span, width, height) {
  if (!clip.thumbnails[span.reference] && !clip.sheet?.strips[span.reference]) return null;
  const film = element("div", "film");
  const broad = height * aspectOf(clip);
  const count = Math.min(MOST_TILES, Math.max(1, Math.ceil(width / broad)));
  film.style.height = `${height}px`;
  if (count === 1) film.classList.add("single"); // the middle of the picture, not its left side
  for (let tile = 0; tile < count; tile++) {
    const picture = element("div", "tile");
    picture.style.width = `${broad}px`;
    const inside = Math.min(span.length - 1, Math.floor(((tile + 0.5) * broad * span.length) / Math.max(width, 1)));
    putPicture(picture, clip, span.reference, span.source + Math.max(0, inside));
    film.append(picture);
  }
  return film;
}
