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
 * @property {boolean} guessed whether nobody knows yet how many they are
 * @property {string | null} fixed the text where it comes by wire and cannot be changed here
 * @property {number[] | null} connected sockets with a wire; null where nobody knows how many pictures there are
 * @property {number} rate frames per second, for the ruler
 * @property {number} aspect width by height, 0 where nobody knows
 * @property {Record<number, number>} lengths latent frames of references that are known
 * @property {Record<number, string>} thumbnails addresses of their pictures
 * @property {Record<number, string>} videos addresses of the video files they come from
 * @property {Sheet | null} sheet small pictures that the last run left
 * @property {string} ran the text that ran, "" before
 * @property {string[]} said what was said of it
 * @property {Before[]} before references of the chain before, as they came
 * @property {string} moved which pictures have got other sockets since the plan was written, "" where none has
 *
 * @typedef {object} Before
 * @property {number} loop segment
 * @property {number} target_start
 * @property {number} length
 * @property {number[]} [strengths] of every frame; runs of older versions have none
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
import { together } from "./together.js";

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
    /** Whether the text comes by wire, so that nothing here can change it. */
    this.locked = false;
    /** @type {Span[]} */
    this.spans = [];
    /** @type {ReturnType<typeof together>} */
    this.together = { problem: "", notes: [] };
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
      button("+", words.add, () => this.press(() => this.add())),
      button("−", words.remove, () => this.press(() => this.remove())),
      this.numbers.root,
    );
    return bar;
  }

  makeChoice() {
    const choice = /** @type {HTMLSelectElement} */ (element("select", "segment"));
    choice.setAttribute("aria-label", this.host.words.segment);
    choice.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey) event.stopPropagation(); // Delete would reach the page, which has a node chosen
    });
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

  /** @param {() => void} act of a button; the keys go on belonging to the timeline */
  press(act) {
    act();
    this.root.focus({ preventScroll: true });
  }

  /**
   * One step that the page can undo: it looks for changes after every key and whenever a mouse button is let go. Where
   * somebody else has changed the text meanwhile, that is drawn instead: places of entries are those of the drawn text.
   *
   * @param {(text: string) => string} edit
   */
  change(edit) {
    const text = this.host.read();
    if (this.editable && text === this.drawn) this.host.write(edit(text));
    this.render();
  }

  get editable() {
    return this.plan !== null && !this.locked;
  }

  /** Draws the text as it is now. */
  render() {
    this.drawn = this.host.read();
    const { fixed, rules } = this.host.clip();
    this.locked = fixed !== null;
    try {
      this.plan = parsePlan(fixed ?? this.drawn);
      this.root.classList.remove("broken");
    } catch (error) {
      // The text stays as it is, and so does the last picture of it; nothing can be dragged until it is put right.
      this.plan = null;
      this.root.classList.add("broken");
      this.numbers.show(null, rules, "");
      this.say(error instanceof Error ? error.message : String(error));
      return;
    }
    this.draw(this.plan);
  }

  /** @param {Plan} plan */
  draw(plan) {
    const [clip, size, { words }] = [this.host.clip(), this.size, this.host];
    this.spans = spansOf(plan, clip, (segment) => segment === this.segment);
    this.together = together(this.spans, clip.latents, clip.rules);
    this.elements = this.spans.map((span) => spanElement(span, clip, size));
    if (this.together.problem) this.elements.forEach((each) => each.classList.add("unusable"));
    hatch(this.spans, this.elements);
    const elsewhere = spansOf(plan, clip, (segment) => segment !== this.segment).map((span) => {
      const { segment } = plan.references[span.entry];
      const where = segment < 0 ? words.last : `${words.segment} ${segment}`;
      return elsewhereElement(span, segment, clip.latents, `${words.elsewhere} ${where}`);
    });
    const before = clip.before.filter(({ loop }) => loop === this.segment).map((each) => beforeElement(each, size, words.chain));
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
    const known = [...this.choice.options].map((option) => option.value).join();
    if (known !== options.map((option) => option.value).join()) this.choice.replaceChildren(...options); // it may be open
    this.choice.value = String(this.segment);
  }

  /** @param {Plan} plan */
  drawWords(plan) {
    const { words } = this.host;
    const found = plan.prompts.find((prompt) => prompt.segment === this.segment);
    if (document.activeElement !== this.prompt) this.prompt.value = found ? found.text : "";
    this.prompt.placeholder = this.segment > 0 ? words.goesOn : words.prompt;
    this.prompt.disabled = this.locked || this.segment < 0 || (this.segment > 0 && !plan.prompts.length);
  }

  writeWords() {
    const given = this.prompt.value;
    if (this.host.read() !== this.drawn) this.render();
    if (!this.editable) return;
    const { prompts } = /** @type {Plan} */ (this.plan);
    const number = prompts.findIndex((prompt) => prompt.segment === this.segment);
    const words = given.replaceAll("|", "/");
    if (words === (number < 0 ? "" : prompts[number].text)) return;
    this.change((text) => {
      if (number < 0) return addPrompt(text, { segment: this.segment, text: words });
      const last = !words && (this.segment > 0 || prompts.length === 1);
      return last ? removeEntry(text, "prompts", number) : changePrompt(text, number, { text: words });
    });
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
    const { rules, ran, said, fixed, guessed, latents, moved } = this.host.clip();
    const place = span && this.plan ? this.plan.references[span.entry] : null;
    this.numbers.show(place, rules, uneditable({ strength: place?.strength || SOME }, rules), this.locked);
    const { problem, notes } = this.together;
    const { words } = this.host;
    const others = moved ? words.moved.replace("{moved}", moved) : [];
    const wrong = [others, this.spans.find((each) => each.problem)?.problem ?? []].flat();
    const known = [problem || notes, this.locked ? words.wired : [], guessed ? words.guessed.replace("{n}", `${latents}`) : []];
    if (span) this.say([others, span.problem || span.notes, span.problem ? [] : known].flat(2).join("\n"));
    else if (wrong.length) this.say(wrong.join("\n"));
    else if (ran && ran === (fixed ?? this.drawn)) this.say(said.join("\n"));
    else this.say([known, this.plan?.references.length ? [] : words.start].flat(2).join("\n"));
  }

  /** @param {Partial<Place>} fields of the chosen reference */
  edit(fields) {
    const span = this.spans[this.selected];
    if (span) this.change((text) => changeReference(text, span.entry, fields));
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
    if (this.busy) return; // a second finger
    this.root.focus({ preventScroll: true }); // which takes over what was being typed, and draws the spans anew
    const entry = found instanceof HTMLElement ? found.dataset.entry : undefined;
    const number = this.spans.findIndex((span) => String(span.entry) === entry);
    this.select(number);
    if (!this.editable || number < 0 || event.button !== 0) return;
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
      if (keep && Object.keys(fields).length) this.change((text) => changeReference(text, span.entry, fields));
      else this.render();
    };
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") finish(false);
      event.stopPropagation();
    }, { signal, capture: true });
    found.addEventListener("pointerup", () => finish(true), { signal });
    found.addEventListener("pointercancel", () => finish(false), { signal });
  }

  add() {
    if (!this.plan) return;
    const { thumbnails, connected } = this.host.clip();
    const known = connected ?? Object.keys(thumbnails).map(Number);
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
    if (!this.editable) return;
    this.selected = this.spans.length;
    this.change((text) => addReference(text, fields));
  }

  remove() {
    const span = this.spans[this.selected];
    if (span) this.change((text) => removeEntry(text, "references", span.entry));
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    const field = event.target instanceof HTMLInputElement || event.target instanceof HTMLTextAreaElement;
    if (field || !this.handle(event)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /**
   * @param {KeyboardEvent} event
   * @returns {boolean} whether the key was meant for the timeline
   */
  handle(event) {
    const held = (event.ctrlKey || event.metaKey) && !event.altKey; // both are AltGr, with which brackets are written
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const span = this.spans[this.selected];
    const place = span && this.plan ? this.plan.references[span.entry] : null;
    // Never the page's, which would remove the node.
    if (key === "Delete" || key === "Backspace") this.remove();
    else if (!this.plan) return false;
    else if (held && key === "v") return paste((fields) => this.append(fields), this.segment);
    else if (held && place && key === "c") return copy(place);
    else if (held && place && key === "d") this.append(duplicate(place, span, this.host.clip().latents));
    else if (held) return false;
    else if (key === "n") this.add();
    else if (key === "," || key === ".") this.step(key === "." ? 1 : -1);
    else if (key === "[" || key === "]") this.select(this.neighbour(key === "]" ? 1 : -1));
    else if (span && key.startsWith("Arrow")) this.nudge(span, key, event.shiftKey);
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
    if (Object.keys(fields).length) this.change((text) => changeReference(text, span.entry, fields));
  }
}
