/**
 * The view: spans on a track, words below, a sentence where the text is broken. It knows no ComfyUI; a host gives it the
 * text and takes the changed one.
 *
 * A drag only moves the one element it has hold of, so that it costs the same with two spans and with two hundred. The
 * text is rewritten once, when it ends.
 *
 * @import { Place, Plan } from "./plan.js"
 * @import { Grip, Track } from "./geometry.js"
 * @import { Rules, Span } from "./rules.js"
 *
 * @typedef {object} Clip what is known of the clip that is made
 * @property {Rules} rules
 * @property {number} latents
 * @property {number} rate frames per second, for the ruler
 * @property {Record<number, number>} lengths latent frames of references that are known
 * @property {Record<number, string>} thumbnails addresses of their pictures
 * @property {{ target_start: number, length: number }[]} before references of the chain before, as they came
 *
 * @typedef {object} Host
 * @property {() => string} read
 * @property {(text: string) => void} write
 * @property {() => Clip} clip
 */
import { copy, duplicate, paste } from "./clipboard.js";
import { addPrompt, addReference, changePrompt, changeReference, removeEntry } from "./edit.js";
import { boxOf, dragged, gripAt, keyed } from "./geometry.js";
import { parsePlan } from "./plan.js";
import { drawRuler } from "./ruler.js";
import { overlapping, spanOf } from "./rules.js";

export const TRACK_HEIGHT = 84;

export class TimelineView {
  /** @param {Host} host */
  constructor(host) {
    this.host = host;
    this.selected = -1;
    this.segment = 0;
    /** Whether something is held or being written, and must not be drawn anew. */
    this.busy = false;
    /** The text that is drawn. */
    this.drawn = "";
    /** @type {Plan | null} */
    this.plan = null;
    /** @type {Span[]} */
    this.spans = [];
    /** @type {HTMLElement[]} */
    this.elements = [];
    this.root = element("div", "opensora-timeline");
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", "Timeline");
    this.bar = element("div", "opensora-timeline-bar");
    this.ruler = element("div", "opensora-timeline-ruler");
    this.track = element("div", "opensora-timeline-track");
    this.words = element("div", "opensora-timeline-words");
    this.sentence = element("div", "opensora-timeline-sentence");
    this.sentence.setAttribute("role", "status");
    this.root.append(this.bar, this.ruler, this.track, this.words, this.sentence);
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.root.addEventListener("wheel", (event) => event.stopPropagation(), { passive: true });
    this.track.addEventListener("pointerdown", (event) => this.onPress(event));
    this.render();
  }

  /** @returns {Track} */
  get size() {
    return { clip: this.host.clip().latents, width: this.track.offsetWidth || 400, height: TRACK_HEIGHT };
  }

  /**
   * One step that the page can undo: it looks for changes after every key and whenever a mouse button is let go.
   *
   * @param {string} text
   */
  change(text) {
    this.host.write(text);
    this.render();
  }

  /** Draws the text as it is now. */
  render() {
    this.drawn = this.host.read();
    try {
      this.plan = parsePlan(this.drawn);
      this.root.classList.remove("broken");
    } catch (error) {
      // The text stays as it is, and so does the last picture of it; nothing can be dragged until it is put right.
      this.plan = null;
      this.root.classList.add("broken");
      this.say(error instanceof Error ? error.message : String(error));
      return;
    }
    this.draw(this.plan);
  }

  /** @param {Plan} plan */
  draw(plan) {
    const [clip, size] = [this.host.clip(), this.size];
    this.spans = plan.references
      .map((place, entry) => ({ place, entry }))
      .filter(({ place }) => place.segment === this.segment)
      .map(({ place, entry }) => spanOf(place, entry, clip.lengths[place.reference], clip.latents, clip.rules));
    this.elements = this.spans.map((span) => this.spanElement(span, clip, size));
    this.track.replaceChildren(...clip.before.map((each) => beforeElement(each, clip.latents)), ...this.elements);
    this.markOverlaps(clip.latents);
    drawRuler(this.ruler, clip, size);
    this.drawBar(plan);
    this.drawWords(plan);
    this.select(Math.min(this.selected, this.spans.length - 1));
  }

  /**
   * @param {Span} span
   * @param {Clip} clip
   * @param {Track} size
   */
  spanElement(span, clip, size) {
    const found = element("div", "opensora-timeline-span");
    found.dataset.entry = String(span.entry);
    // Not to be focused itself: it is made anew after every change, and the keys belong to the whole view.
    found.setAttribute("role", "img");
    if (span.problem) found.classList.add("unusable");
    const picture = clip.thumbnails[span.reference];
    if (picture) found.style.backgroundImage = `url("${picture}")`;
    found.append(element("span", "opensora-timeline-number", String(span.reference)));
    this.put(found, span, size);
    return found;
  }

  /**
   * @param {HTMLElement} found
   * @param {Span} span
   * @param {Track} size
   */
  put(found, span, { clip, height }) {
    const box = boxOf(span, { clip, width: 100, height });
    Object.assign(found.style, {
      left: `${box.left}%`, width: `${box.width}%`, top: `${box.top}px`, height: `${box.height}px`,
    });
    const told = span.problem || span.notes.join(" ");
    found.title = told;
    found.setAttribute("aria-label", told);
  }

  /** @param {number} latents */
  markOverlaps(latents) {
    for (const frame of overlapping(this.spans)) {
      const mark = element("div", "opensora-timeline-overlap");
      Object.assign(mark.style, { left: `${(frame * 100) / latents}%`, width: `${100 / latents}%` });
      this.track.append(mark);
    }
  }

  /** @param {Plan} plan */
  drawBar(plan) {
    const last = Math.max(
      0, ...plan.references.map((place) => place.segment), ...plan.prompts.map((prompt) => prompt.segment),
    );
    const choice = /** @type {HTMLSelectElement} */ (element("select", "opensora-timeline-segment"));
    choice.setAttribute("aria-label", "Segment");
    for (const number of [...Array(last + 2).keys(), -1]) {
      const option = new Option(number < 0 ? "last segment" : `segment ${number}`, String(number));
      choice.append(option);
    }
    choice.value = String(this.segment);
    choice.addEventListener("change", () => {
      this.segment = Number(choice.value);
      this.render();
    });
    this.bar.replaceChildren(
      choice,
      button("+ reference", "Add a reference (N)", () => this.add()),
      button("−", "Remove the chosen reference (Delete)", () => this.remove()),
    );
  }

  /** @param {Plan} plan */
  drawWords(plan) {
    const number = plan.prompts.findIndex((prompt) => prompt.segment === this.segment);
    const field = /** @type {HTMLTextAreaElement} */ (element("textarea", "opensora-timeline-prompt"));
    field.value = number < 0 ? "" : plan.prompts[number].text;
    field.placeholder = this.segment > 0 ? "The words before go on." : "The prompt.";
    field.disabled = this.segment < 0 || (this.segment > 0 && !plan.prompts.length);
    field.setAttribute("aria-label", `Prompt of segment ${this.segment}`);
    field.addEventListener("keydown", (event) => event.stopPropagation());
    field.addEventListener("focus", () => (this.busy = true));
    field.addEventListener("blur", () => (this.busy = false));
    field.addEventListener("change", () => {
      this.busy = false;
      const text = this.host.read();
      const words = field.value.replaceAll("|", "/");
      if (number < 0) this.change(addPrompt(text, { segment: this.segment, text: words }));
      else if (!words && (this.segment > 0 || plan.prompts.length === 1)) this.change(removeEntry(text, "prompts", number));
      else this.change(changePrompt(text, number, { text: words }));
      if (words !== field.value) this.say("'|' separates segments and was written as '/'.");
    });
    this.words.replaceChildren(field);
  }

  /** @param {string} sentence */
  say(sentence) {
    this.sentence.textContent = sentence;
  }

  /** @param {number} number among the spans that are shown */
  select(number) {
    this.selected = number;
    this.elements.forEach((each, at) => each.classList.toggle("selected", at === number));
    const span = this.spans[number];
    this.say(span ? span.problem || span.notes.join(" ") : "");
  }

  /** @param {PointerEvent} event */
  onPress(event) {
    const found = event.target instanceof Element ? event.target.closest(".opensora-timeline-span") : null;
    event.stopPropagation();
    this.root.focus({ preventScroll: true });
    const number = found instanceof HTMLElement ? this.elements.indexOf(found) : -1;
    this.select(number);
    if (!this.plan || number < 0 || event.button !== 0) return;
    const rules = this.host.clip().rules;
    // The page zooms its nodes: what the screen shows and what the track measures differ by that factor.
    const zoom = this.track.getBoundingClientRect().width / this.size.width || 1;
    const edge = this.elements[number].getBoundingClientRect();
    const box = { left: 0, top: 0, width: edge.width / zoom, height: edge.height / zoom };
    const grip = gripAt(box, (event.clientX - edge.left) / zoom, (event.clientY - edge.top) / zoom, rules.editable);
    this.follow(event, number, grip, zoom);
  }

  /**
   * @param {PointerEvent} press
   * @param {number} number
   * @param {Grip} grip
   * @param {number} zoom
   */
  follow(press, number, grip, zoom) {
    const [span, found, clip, size] = [this.spans[number], this.elements[number], this.host.clip(), this.size];
    const place = /** @type {Plan} */ (this.plan).references[span.entry];
    /** @type {ReturnType<typeof dragged>} */
    let fields = {};
    const end = new AbortController();
    const { signal } = end;
    const available = clip.lengths[span.reference];
    found.setPointerCapture(press.pointerId);
    this.busy = true;
    found.addEventListener("pointermove", (event) => {
      const [right, down] = [(event.clientX - press.clientX) / zoom, (event.clientY - press.clientY) / zoom];
      fields = dragged(place, span, grip, right, down, size, clip.rules);
      this.put(found, spanOf({ ...place, ...fields }, span.entry, available, size.clip, clip.rules), size);
    }, { signal });
    /** @param {boolean} keep */
    const finish = (keep) => {
      end.abort();
      this.busy = false;
      if (keep && Object.keys(fields).length) this.change(changeReference(this.host.read(), span.entry, fields));
      else this.render();
    };
    found.addEventListener("pointerup", () => finish(true), { signal });
    found.addEventListener("pointercancel", () => finish(false), { signal });
  }

  add() {
    if (!this.plan) return;
    const known = Object.keys(this.host.clip().thumbnails).map(Number);
    const used = new Set(this.plan.references.map((place) => place.reference));
    const reference = known.find((number) => !used.has(number)) ?? known[0] ?? 0;
    this.append({ reference, segment: this.segment });
  }

  /**
   * Adds a reference and chooses it.
   *
   * @param {Partial<Place>} fields
   */
  append(fields) {
    this.selected = this.spans.length;
    this.change(addReference(this.host.read(), fields));
  }

  remove() {
    const span = this.spans[this.selected];
    if (this.plan && span) this.change(removeEntry(this.host.read(), "references", span.entry));
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.target !== this.root || !this.handle(event)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /**
   * @param {KeyboardEvent} event
   * @returns {boolean} whether the key was meant for the timeline
   */
  handle(event) {
    const held = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!this.plan) return false;
    const span = this.spans[this.selected];
    if (held && key === "v") return paste((fields) => this.append(fields), this.segment);
    if (key === "n" && !held) this.add();
    else if (key === "[" || key === "]") this.select(this.neighbour(key === "]" ? 1 : -1));
    else if (!span) return false;
    else if (held && key === "c") return copy(this.plan.references[span.entry]);
    else if (held && key === "d") this.append(duplicate(this.plan.references[span.entry]));
    else if (key === "Delete" || key === "Backspace") this.remove();
    else if (key.startsWith("Arrow")) this.nudge(span, key, event.shiftKey);
    else return false;
    return true;
  }

  /** @param {number} step */
  neighbour(step) {
    const count = this.spans.length;
    return count ? (this.selected + step + count + (this.selected < 0 && step < 0 ? 1 : 0)) % count : -1;
  }

  /**
   * @param {Span} span
   * @param {string} key
   * @param {boolean} shift
   */
  nudge(span, key, shift) {
    const { rules, latents } = this.host.clip();
    const place = /** @type {Plan} */ (this.plan).references[span.entry];
    const fields = keyed(place, span, key, shift, latents, rules);
    if (Object.keys(fields).length) this.change(changeReference(this.host.read(), span.entry, fields));
  }
}

/**
 * @param {string} tag
 * @param {string} name
 * @param {string} [text]
 * @returns {HTMLElement}
 */
export function element(tag, name, text = "") {
  const found = document.createElement(tag);
  found.className = name;
  found.textContent = text;
  return found;
}

/**
 * @param {string} text
 * @param {string} title
 * @param {() => void} press
 */
function button(text, title, press) {
  const found = element("button", "opensora-timeline-button", text);
  found.title = title;
  found.setAttribute("aria-label", title);
  // Not "click", which comes after the page has looked for changes; a key presses without a pointer.
  found.addEventListener("pointerup", press);
  found.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") press();
  });
  return found;
}

/**
 * A reference that came with the chain: shown, not moved.
 *
 * @param {{ target_start: number, length: number }} reference
 * @param {number} latents
 */
function beforeElement({ target_start, length }, latents) {
  const found = element("div", "opensora-timeline-before");
  const start = target_start < 0 ? target_start + latents : target_start;
  Object.assign(found.style, { left: `${(start * 100) / latents}%`, width: `${(length * 100) / latents}%` });
  found.title = "From the connected chain of references.";
  return found;
}
