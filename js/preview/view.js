/**
 * The moving picture and the line below it. It knows no ComfyUI.
 *
 * @import { Message, Mode } from "./loop.js"
 */
import { frameAt, partOf } from "./loop.js";

export const HEIGHT = 200;
const STYLE = "opensora-preview-style";
const RULES = `
.opensora-preview { display: flex; flex-direction: column; gap: 2px; height: 100%; min-height: ${HEIGHT}px; width: 100%;
  box-sizing: border-box; pointer-events: none; font: 11px/16px sans-serif; color: var(--input-text, #ddd); }
.opensora-preview > canvas { flex: 1 1 0; min-height: 0; width: 100%; object-fit: contain; }
.opensora-preview > span { flex: none; text-align: center; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
`;

export class PreviewView {
  constructor() {
    addStyle();
    this.root = document.createElement("div");
    this.root.className = "opensora-preview";
    this.canvas = document.createElement("canvas");
    this.caption = document.createElement("span");
    this.root.append(this.canvas, this.caption);
    /** @type {Message | null} */
    this.message = null;
    /** @type {Mode} */
    this.mode = "loop";
    /** What was drawn last, so that nothing is drawn twice. */
    this.drawn = "";
    this.image = new Image();
    this.image.addEventListener("load", () => {
      this.message = this.coming;
      this.drawn = "";
      this.draw(performance.now());
    });
    /** @type {Message | null} */
    this.coming = null;
    this.timer = 0;
  }

  /**
   * @param {Message} message
   * @param {Mode} mode
   * @param {string} caption
   */
  show(message, mode, caption) {
    this.mode = mode;
    this.coming = message;
    this.image.src = message.picture;
    this.caption.textContent = caption;
    this.root.setAttribute("aria-label", caption);
    if (!this.timer) this.play();
  }

  play() {
    this.timer = requestAnimationFrame((now) => {
      this.draw(now);
      this.play();
    });
  }

  /** @param {number} now */
  draw(now) {
    const message = this.message;
    if (!message) return;
    const frame = frameAt(now, message, this.mode);
    const key = `${message.prompt_id} ${message.segment} ${message.step} ${frame} ${this.mode}`;
    if (key === this.drawn) return;
    this.drawn = key;
    this.canvas.dataset.frame = String(frame);
    const part = partOf(frame, message, this.mode);
    if (this.canvas.width !== part.width) this.canvas.width = part.width;
    if (this.canvas.height !== part.height) this.canvas.height = part.height;
    this.canvas
      .getContext("2d")
      ?.drawImage(this.image, part.x, part.y, part.width, part.height, 0, 0, part.width, part.height);
  }

  stop() {
    cancelAnimationFrame(this.timer);
    this.timer = 0;
    this.root.remove();
  }
}

function addStyle() {
  if (document.getElementById(STYLE)) return;
  const style = document.createElement("style");
  style.id = STYLE;
  style.textContent = RULES;
  document.head.append(style);
}
