/**
 * Which part of a picture is shown when, and what is said of it: without a page.
 *
 * @typedef {object} Message what `native/previews/sending.py` sends
 * @property {string} node
 * @property {string} prompt_id
 * @property {string | null} graph id of the workflow that runs
 * @property {string} picture address of one picture that holds all frames, in reading order
 * @property {number} frames
 * @property {number} columns
 * @property {number} width of a frame
 * @property {number} height
 * @property {number} latent_frames of the whole clip
 * @property {number} clips in the batch
 * @property {number} step
 * @property {number} steps
 * @property {number} segment from 1
 * @property {number} segments
 *
 * @typedef {"off" | "first" | "sheet" | "loop"} Mode
 */

export const MODES = ["off", "first", "sheet", "loop"];

/** A latent frame stands for four frames, of 24 a second. */
export const FRAMES_PER_SECOND = 6;

/**
 * @param {unknown} value of the setting
 * @returns {Mode}
 */
export function modeOf(value) {
  return MODES.includes(/** @type {string} */ (value)) ? /** @type {Mode} */ (value) : "loop";
}

/**
 * @param {number} milliseconds since the page was opened
 * @param {Message} message
 * @param {Mode} mode
 * @returns {number} the frame that is shown then
 */
export function frameAt(milliseconds, message, mode) {
  return mode === "loop" ? Math.floor((milliseconds * FRAMES_PER_SECOND) / 1000) % message.frames : 0;
}

/**
 * @param {number} frame
 * @param {Message} message
 * @param {Mode} mode
 * @returns {{ x: number, y: number, width: number, height: number }} what is cut out of the picture
 */
export function partOf(frame, { frames, columns, width, height }, mode) {
  if (mode === "sheet") return { x: 0, y: 0, width: width * columns, height: height * Math.ceil(frames / columns) };
  return { x: (frame % columns) * width, y: Math.floor(frame / columns) * height, width, height };
}

/**
 * @param {Message} message
 * @param {Record<"step" | "segment" | "clip" | "frames", string>} words
 * @returns {string}
 */
export function captionOf(message, words) {
  const { step, steps, segment, segments, clips, latent_frames: frames } = message;
  /** @param {string} text @param {...number} numbers */
  const put = (text, ...numbers) => numbers.reduce((said, number) => said.replace("#", String(number)), text);
  const parts = [put(words.step, step, steps)];
  if (segments > 1) parts.push(put(words.segment, segment, segments));
  if (clips > 1) parts.push(put(words.clip, 1, clips));
  parts.push(put(words.frames, frames));
  return parts.join(" · ");
}
