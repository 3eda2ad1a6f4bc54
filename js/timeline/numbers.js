/**
 * The chosen reference as numbers that can be typed.
 *
 * @import { Place } from "./plan.js"
 * @import { Rules } from "./rules.js"
 */
import { element, keepKeys } from "./elements.js";
import { clamp } from "./geometry.js";
import { LIMITS } from "./plan.js";

/** @type {(keyof Place)[]} */
const SHOWN = ["reference", "at", "length", "from", "strength"];
const STEP = 0.05;

export class Numbers {
  /** @param {(fields: Partial<Place>) => void} change */
  constructor(change) {
    this.root = element("div", "numbers");
    /** @type {Record<string, HTMLInputElement>} */
    this.fields = {};
    /** The field somebody is typing in. @type {HTMLInputElement | null} */
    this.typing = null;
    for (const name of SHOWN) {
      const label = element("label", "", name === "reference" ? "#" : name);
      const field = /** @type {HTMLInputElement} */ (element("input", "field"));
      const [low, high] = LIMITS[name];
      Object.assign(field, { type: "number", min: low, max: high, step: name === "strength" ? STEP : 1, name });
      const commit = () => {
        this.typing = null;
        const value = Number(field.value);
        if (field.value === "" || !Number.isFinite(value)) return change({});
        const kept = clamp(name === "strength" ? value : Math.round(value), low, high);
        change({ [name]: kept });
      };
      keepKeys(field, commit);
      field.addEventListener("input", () => (this.typing = field));
      field.addEventListener("change", commit);
      label.append(field);
      this.root.append(label);
      this.fields[name] = field;
    }
  }

  /**
   * @param {Place | null} place
   * @param {Rules} rules
   * @param {string} why the release knows no strengths
   * @param {boolean} locked
   */
  show(place, rules, why, locked = false) {
    if (!place) this.typing = null;
    this.root.classList.toggle("nothing", !place);
    for (const name of SHOWN) {
      const field = this.fields[name];
      const fixed = name === "strength" && !rules.editable;
      field.disabled = locked || !place || (fixed && !place.strength);
      field.title = fixed ? why : name;
      if (field !== this.typing) field.value = place ? String(place[name]) : "";
    }
  }
}
