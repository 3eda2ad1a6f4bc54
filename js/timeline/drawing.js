/**
 * Pictures that core's nodes will draw, drawn here before anything has run: one colour, and one picture laid on another.
 */
import { isWired, originOf, settingsOf } from "./graph.js";

/** Pixels of the longer side of what is drawn here, and how deep pictures may lie in pictures. */
const LONGEST = 160;
const DEEPEST = 8;
/** @type {Map<string, string>} */
const drawn = new Map();
const MOST_KEPT = 100;

/**
 * @typedef {{ color: number, width: number, height: number }} Ground
 * @typedef {{ under: Drawing, over: Drawing, x: number, y: number, width: number, height: number }} Laid
 * @typedef {Ground | Laid} Drawing
 */

/**
 * @param {any} node
 * @returns {string} the address of its picture, "" where it is not known
 */
export function drawingOf(node) {
  const drawing = planOf(node, 0);
  if (!drawing) return "";
  const key = JSON.stringify(drawing);
  const known = drawn.get(key);
  if (known !== undefined) return known;
  if (drawn.size >= MOST_KEPT) drawn.clear();
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, LONGEST / Math.max(drawing.width, drawing.height));
  canvas.width = Math.max(1, Math.round(drawing.width * scale));
  canvas.height = Math.max(1, Math.round(drawing.height * scale));
  const pen = canvas.getContext("2d");
  if (pen) {
    pen.scale(scale, scale);
    draw(pen, drawing);
  }
  const url = pen ? canvas.toDataURL() : "";
  drawn.set(key, url);
  return url;
}

/**
 * @param {any} node
 * @param {number} depth
 * @returns {Drawing | null}
 */
function planOf(node, depth) {
  if (!node || depth > DEEPEST || node.mode) return null; // a node that is skipped draws something else
  const { width, height, color, x, y, resize_source } = settingsOf(node);
  if (node.comfyClass === "EmptyImage") {
    return whole(width) && whole(height) && whole(color) ? { color, width, height } : null;
  }
  if (node.comfyClass !== "ImageCompositeMasked" || resize_source || isWired(node, "mask")) return null;
  const [under, over] = ["destination", "source"].map((name) => planOf(originOf(node, name), depth + 1));
  return under && over && whole(x) && whole(y) ? { under, over, x, y, width: under.width, height: under.height } : null;
}

/** @param {any} value */
function whole(value) {
  return Number.isInteger(value) && value >= 0;
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Drawing} drawing
 */
function draw(pen, drawing) {
  pen.save();
  pen.beginPath();
  pen.rect(0, 0, drawing.width, drawing.height);
  pen.clip();
  if ("color" in drawing) {
    pen.fillStyle = `#${drawing.color.toString(16).padStart(6, "0")}`;
    pen.fillRect(0, 0, drawing.width, drawing.height);
  } else {
    draw(pen, drawing.under);
    pen.translate(drawing.x, drawing.y);
    draw(pen, drawing.over);
  }
  pen.restore();
}
