/**
 * The view: spans on a track, words below, a sentence where the text is broken. It knows no ComfyUI; a host gives it the
 * text and takes the changed one.
 *
 * A drag only moves the one element it has hold of, so that it costs the same with two spans and with two hundred. The
 * text is rewritten once, when it ends.
 *
 * @import { Place, Plan } from "./plan.js"
 * @import { Grip, Track } from "./geometry.js"
 * @import { Sheet } from "./pictures.js"
 * @import { Rules, Span } from "./rules.js"
 * @import { Words } from "./words.js"
 *
 * @typedef {object} Clip what is known of the clip that is made
 * @property {Rules} rules
 * @property {number} latents
 * @property {number} rate frames per second, for the ruler
 * @property {number} aspect width by height, 0 where nobody knows
 * @property {Record<number, number>} lengths latent frames of references that are known
 * @property {Record<number, string>} thumbnails addresses of their pictures
 * @property {Record<number, string>} videos addresses of the video files they come from
 * @property {Sheet | null} sheet small pictures that the last run left
 * @property {string} ran the text that ran, "" before
 * @property {string[]} said what was said of it
 * @property {{ target_start: number, length: number }[]} before references of the chain before, as they came
 *
 * @typedef {object} Host
 * @property {() => string} read
 * @property {(text: string) => void} write
 * @property {() => Clip} clip
 * @property {Words} words
 */
import { copy, duplicate, paste } from "./clipboard.js";
import { addPrompt, addReference, changePrompt, changeReference, removeEntry } from "./edit.js";
import { button, element, keepKeys } from "./elements.js";
import { dragged, gripAt, keyed } from "./geometry.js";
import { Numbers } from "./numbers.js";
import { parsePlan } from "./plan.js";
import { PlayHead } from "./playhead.js";
import { drawRuler } from "./ruler.js";
import { spanOf, uneditable } from "./rules.js";
import { beforeElement, elsewhereElement, hatch, put, spanElement, spansOf } from "./spans.js";

export const TRACK_HEIGHT = 84;
/** Half a strength, for the sentence on why a release knows none. */
const SOME = 0.5;

export class TimelineView {
  /** @param {Host} host */
  constructor(host) {
    this.host = host;
    this.selected = -1;
    this.segment = 0;
    /** Whether something is held and must not be drawn anew. */
    this.busy = false;
    /** The text that is drawn. */
    this.drawn = "";
    /** @type {Plan | null} */
    this.plan = null;
    /** @type {Span[]} */
    this.spans = [];
    /** @type {HTMLElement[]} */
    this.elements = [];
    this.root = element("div", "");
    this.root.className = "opensora-timeline";
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", host.words.timeline);
    this.ruler = element("div", "ruler");
    this.track = element("div", "track");
    this.sentence = element("div", "sentence");
    this.sentence.setAttribute("role", "status");
    this.head = new PlayHead();
    this.numbers = new Numbers((fields) => this.edit(fields));
    this.choice = this.makeChoice();
    this.prompt = this.makePrompt();
    const below = element("div", "below");
    below.append(this.head.stage, this.prompt);
    this.root.append(this.makeBar(), this.ruler, this.track, below, this.sentence);
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.root.addEventListener("wheel", (event) => event.stopPropagation(), { passive: true });
    this.track.addEventListener("pointerdown", (event) => this.onPress(event));
    this.ruler.addEventListener("pointerdown", (event) => this.seek(event));
    this.render();
  }

  makeBar() {
    const { words } = this.host;
    const bar = element("div", "bar");
    bar.append(
      this.choice,
      button("+", words.add, () => this.add()),
      button("−", words.remove, () => this.remove()),
      this.numbers.root,
    );
    return bar;
  }

  makeChoice() {
    const choice = /** @type {HTMLSelectElement} */ (element("select", "segment"));
    choice.setAttribute("aria-label", this.host.words.segment);
    choice.addEventListener("change", () => {
      this.segment = Number(choice.value);
      this.selected = -1;
      this.render();
    });
    return choice;
  }

  makePrompt() {
    const field = /** @type {HTMLTextAreaElement} */ (element("textarea", "prompt"));
    field.setAttribute("aria-label", this.host.words.prompt);
    keepKeys(field, () => this.writeWords());
    field.addEventListener("change", () => this.writeWords());
    return field;
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
      this.numbers.show(null, this.host.clip().rules, "");
      this.say(error instanceof Error ? error.message : String(error));
      return;
    }
    this.draw(this.plan);
  }

  /** @param {Plan} plan */
  draw(plan) {
    const [clip, size, { words }] = [this.host.clip(), this.size, this.host];
    this.spans = spansOf(plan, clip, (segment) => segment === this.segment);
    this.elements = this.spans.map((span) => spanElement(span, clip, size));
    hatch(this.spans, this.elements);
    const elsewhere = spansOf(plan, clip, (segment) => segment !== this.segment).map((span) => {
      const { segment } = plan.references[span.entry];
      const where = segment < 0 ? words.last : `${words.segment} ${segment}`;
      return elsewhereElement(span, segment, clip.latents, `${words.elsewhere} ${where}`);
    });
    const before = clip.before.map((each) => beforeElement(each, clip.latents, words.chain));
    this.track.replaceChildren(...before, ...elsewhere, ...this.elements, this.head.line);
    drawRuler(this.ruler, clip, size, words.ruler);
    this.drawChoice(plan);
    this.drawWords(plan);
    this.head.draw(clip, this.spans, words.free);
    this.select(Math.min(this.selected, this.spans.length - 1));
  }

  /** @param {Plan} plan */
  drawChoice(plan) {
    const { words } = this.host;
    const last = Math.max(
      0, ...plan.references.map((place) => place.segment), ...plan.prompts.map((prompt) => prompt.segment),
    );
    const options = [...Array(Math.max(last + 1, this.segment) + 1).keys(), -1].map((number) => {
      return new Option(number < 0 ? words.last : `${words.segment} ${number}`, String(number));
    });
    this.choice.replaceChildren(...options);
    this.choice.value = String(this.segment);
  }

  /** @param {Plan} plan */
  drawWords(plan) {
    const { words } = this.host;
    const found = plan.prompts.find((prompt) => prompt.segment === this.segment);
    if (document.activeElement !== this.prompt) this.prompt.value = found ? found.text : "";
    this.prompt.placeholder = this.segment > 0 ? words.goesOn : words.prompt;
    this.prompt.disabled = this.segment < 0 || (this.segment > 0 && !plan.prompts.length);
  }

  writeWords() {
    if (!this.plan) return;
    const { prompts } = this.plan;
    const number = prompts.findIndex((prompt) => prompt.segment === this.segment);
    const [text, given] = [this.host.read(), this.prompt.value];
    const words = given.replaceAll("|", "/");
    if (words === (number < 0 ? "" : prompts[number].text)) return;
    if (number < 0) this.change(addPrompt(text, { segment: this.segment, text: words }));
    else if (!words && (this.segment > 0 || prompts.length === 1)) this.change(removeEntry(text, "prompts", number));
    else this.change(changePrompt(text, number, { text: words }));
    if (words !== given) this.say("'|' separates segments and was written as '/'.");
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
    const { rules, ran, said } = this.host.clip();
    const place = span && this.plan ? this.plan.references[span.entry] : null;
    this.numbers.show(place, rules, uneditable({ strength: place?.strength || SOME }, rules));
    if (span) this.say(span.problem || span.notes.join("\n"));
    else if (ran && ran === this.drawn) this.say(said.join("\n"));
    else this.say(this.plan?.references.length ? "" : this.host.words.start);
  }

  /** @param {Partial<Place>} fields of the chosen reference */
  edit(fields) {
    const span = this.spans[this.selected];
    if (this.plan && span) this.change(changeReference(this.host.read(), span.entry, fields));
  }

  /**
   * Moves the play head along the ruler.
   *
   * @param {PointerEvent} press
   */
  seek(press) {
    press.stopPropagation();
    this.root.focus({ preventScroll: true });
    const box = this.ruler.getBoundingClientRect();
    const clip = this.host.clip();
    const end = new AbortController();
    /** @param {PointerEvent} event */
    const move = (event) => {
      this.head.latent = Math.floor(((event.clientX - box.left) * clip.latents) / (box.width || 1));
      this.head.draw(clip, this.spans, this.host.words.free);
    };
    move(press);
    this.ruler.setPointerCapture(press.pointerId);
    this.ruler.addEventListener("pointermove", move, { signal: end.signal });
    for (const name of ["pointerup", "pointercancel"]) {
      this.ruler.addEventListener(name, () => end.abort(), { signal: end.signal });
    }
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
      put(found, spanOf({ ...place, ...fields }, span.entry, available, size.clip, clip.rules), size);
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
    else if (key === "," || key === ".") this.step(key === "." ? 1 : -1);
    else if (key === "[" || key === "]") this.select(this.neighbour(key === "]" ? 1 : -1));
    else if (!span) return false;
    else if (held && key === "c") return copy(this.plan.references[span.entry]);
    else if (held && key === "d") this.append(duplicate(this.plan.references[span.entry]));
    else if (key === "Delete" || key === "Backspace") this.remove();
    else if (key.startsWith("Arrow")) this.nudge(span, key, event.shiftKey);
    else return false;
    return true;
  }

  /** @param {number} frames latent frames that the play head moves */
  step(frames) {
    this.head.latent += frames;
    this.head.draw(this.host.clip(), this.spans, this.host.words.free);
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
