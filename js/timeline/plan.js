/**
 * The plan of a timeline as text and as data; the same rules as `opensora_models/sampling/timeline.py`, which is what a
 * run uses. `tests/timeline/cases.json` holds both to the same answers.
 *
 * @typedef {{ reference: number, at: number, length: number, from: number, strength: number, segment: number }} Place
 * @typedef {{ segment: number, text: string }} Prompt
 * @typedef {{ references: Place[], prompts: Prompt[], notation: "json" | "strategy" }} Plan
 */
import { PlanError, bare, parseJson, valueOf } from "./json.js";

export { PlanError };

/** @type {Place} */
export const DEFAULTS = { reference: 0, at: 0, length: 1, from: 0, strength: 0, segment: 0 };
/** @type {Record<keyof Place, [number, number]>} */
export const LIMITS = {
  reference: [0, 999],
  at: [-10000, 10000],
  length: [1, 10000],
  from: [-10000, 10000],
  strength: [0, 1],
  segment: [-1, 999],
};
/** @type {(keyof Place)[]} The fields of a group of the mask strategy, in their order. */
export const STRATEGY_ORDER = ["segment", "reference", "from", "at", "length", "strength"];
const FIELDS = /** @type {(keyof Place)[]} */ (Object.keys(DEFAULTS));
const MOST_ENTRIES = 1000;
const SHOWN = 40;
const LONGEST_SENTENCE = 240;
const HALF_CHARACTER = /[\ud800-\udfff]/u;
const ASCII = /^[\x00-\x7f]*$/;
const STRATEGY_START = /^[-+.,;\d]/;
const STRATEGY_EXAMPLE = "0,0,0,0;0,1,0,-1";
const EXAMPLE = '{"references": [{"reference": 0, "at": 0}]}';
const WHOLE = /^\s*[+-]?\d+(?:_\d+)*\s*$/;
const DECIMAL = /^\s*[+-]?(?:\d+(?:_\d+)*\.?(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:[eE][+-]?\d+(?:_\d+)*)?\s*$/;

/**
 * The plan a text describes; an empty text is an empty plan. Throws PlanError with one sentence.
 *
 * @param {string} text
 * @returns {Plan}
 */
export function parsePlan(text) {
  const written = bare(text);
  if (!written) return { references: [], prompts: [], notation: "json" };
  if (/^[{[]/.test(written)) return fromJson(written);
  if (!ASCII.test(written) || !STRATEGY_START.test(written)) {
    throw new PlanError(
      `The plan is neither JSON, for example ${EXAMPLE}, nor a mask strategy, for example ${STRATEGY_EXAMPLE}; it ` +
        `begins with ${shown(written)}.`,
    );
  }
  return fromStrategy(written);
}

/**
 * The plan in its notation, every field written out.
 *
 * @param {Plan} plan
 * @returns {string}
 */
export function formatPlan(plan) {
  if (plan.notation === "strategy" && !plan.prompts.length) return formatStrategy(plan.references);
  const lists = { references: plan.references.map(writtenPlace), prompts: plan.prompts.map(writtenPrompt) };
  const blocks = Object.entries(lists)
    .filter(([, rows]) => rows.length)
    .map(([name, rows]) => `  "${name}": [\n    ${rows.join(",\n    ")}\n  ]`);
  return blocks.length ? `{\n${blocks.join(",\n")}\n}` : "{}";
}

/**
 * @param {Place[]} places
 * @returns {string} the places in Open-Sora's own notation
 */
export function formatStrategy(places) {
  return places.map((place) => STRATEGY_ORDER.map((name) => strategyField(name, place[name])).join(",")).join(";");
}

/**
 * @param {keyof Place} name
 * @param {number} value
 * @returns {string} as the original's program prints it: edit ratios always have a point
 */
export function strategyField(name, value) {
  return name === "strength" && Number.isInteger(value) ? `${value}.0` : String(value);
}

/**
 * @param {Place} place
 * @returns {string} one object on one line
 */
export function writtenPlace(place) {
  return `{${FIELDS.map((name) => `"${name}": ${place[name]}`).join(", ")}}`;
}

/**
 * @param {Prompt} prompt
 * @returns {string} one object on one line
 */
export function writtenPrompt(prompt) {
  return `{"segment": ${prompt.segment}, "text": ${JSON.stringify(prompt.text)}}`;
}

/**
 * @param {string} text
 * @returns {Plan}
 */
function fromStrategy(text) {
  const references = text.split(";").map(group);
  checkCount("references", references);
  references.forEach((place, number) => {
    for (const name of FIELDS) checkNumber(`The ${name} of group ${number} of the mask strategy`, name, place[name]);
  });
  return { references, prompts: [], notation: "strategy" };
}

/**
 * @param {string} text
 * @returns {Place}
 */
function group(text) {
  const fields = text.split(",");
  if (fields.length > STRATEGY_ORDER.length) {
    throw shortened(
      `The mask strategy group '${text}' has ${fields.length} fields, at most ${STRATEGY_ORDER.length} are allowed.`,
    );
  }
  const place = { ...DEFAULTS };
  fields.forEach((field, number) => {
    const name = STRATEGY_ORDER[number];
    if (!(name === "strength" ? DECIMAL : WHOLE).test(field)) {
      const wanted = name === "strength" ? "a number" : "a whole number";
      throw shortened(`The ${name} in the mask strategy group '${text}' is '${field}'; it must be ${wanted}.`);
    }
    place[name] = Number(field.replaceAll("_", "")) + 0; // -0 is 0
  });
  return place;
}

/**
 * @param {string} sentence that quotes a whole group, however long it is
 * @returns {PlanError} with the middle left out where it is too long
 */
function shortened(sentence) {
  const half = (LONGEST_SENTENCE - 3) / 2;
  if (sentence.length <= LONGEST_SENTENCE) return new PlanError(sentence);
  return new PlanError(`${sentence.slice(0, half)} … ${sentence.slice(-half)}`);
}

/**
 * @param {string} text
 * @returns {Plan}
 */
function fromJson(text) {
  const given = valueOf(parseJson(text));
  if (!isObject(given)) {
    throw new PlanError(`The plan is ${shown(given)}, but must be one object in braces, for example ${EXAMPLE}.`);
  }
  checkNames("The plan", given, ["references", "prompts"]);
  const rows = { references: objects("references", given), prompts: objects("prompts", given) };
  const references = rows.references.map((row, number) => readPlace(`references[${number}]`, row));
  const prompts = rows.prompts.map((row, number) => readPrompt(`prompts[${number}]`, row));
  checkPrompts(prompts);
  return { references, prompts, notation: "json" };
}

/**
 * @param {any} value
 * @returns {boolean}
 */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * @param {"references" | "prompts"} name
 * @param {Record<string, any>} given
 * @returns {Record<string, any>[]}
 */
function objects(name, given) {
  const rows = name in given ? given[name] : [];
  if (!Array.isArray(rows)) {
    throw new PlanError(`${name} is ${shown(rows)}, but must be a list in square brackets, for example [].`);
  }
  checkCount(name, rows);
  rows.forEach((row, number) => {
    if (!isObject(row)) throw new PlanError(`${name}[${number}] is ${shown(row)}, but must be an object in braces.`);
  });
  return rows;
}

/**
 * @param {string} name
 * @param {any[]} rows
 */
function checkCount(name, rows) {
  if (rows.length > MOST_ENTRIES) {
    throw new PlanError(`${name} has ${rows.length} entries, at most ${MOST_ENTRIES} are allowed.`);
  }
}

/**
 * @param {string} where
 * @param {Record<string, any>} row
 * @param {string[]} known
 */
function checkNames(where, row, known) {
  const other = Object.keys(row).find((name) => !known.includes(name));
  if (other !== undefined) throw new PlanError(`${where} has a field ${shown(other)}; known are ${known.join(", ")}.`);
}

/**
 * @param {string} where
 * @param {Record<string, any>} row
 * @returns {Place}
 */
function readPlace(where, row) {
  checkNames(where, row, FIELDS);
  const place = { ...DEFAULTS };
  for (const name of /** @type {(keyof Place)[]} */ (Object.keys(row))) {
    place[name] = checkNumber(`${where}.${name}`, name, row[name]);
  }
  return place;
}

/**
 * @param {string} where
 * @param {keyof Place} name
 * @param {any} value
 * @param {number} [low] the least that is allowed
 * @returns {number}
 */
function checkNumber(where, name, value, low = LIMITS[name][0]) {
  const high = LIMITS[name][1];
  const whole = name !== "strength";
  const must = `${where} is ${shown(value)}, but must be ${whole ? "a whole number" : "a number"} between ${low} and ${high}`;
  if (typeof value !== "number") throw new PlanError(`${must}.`);
  if (!(low <= value && value <= high) || (whole && !Number.isInteger(value))) {
    const nearest = Math.min(Math.max(value, low), high);
    throw new PlanError(`${must}; the nearest good value is ${whole ? Math.floor(nearest) : nearest}.`);
  }
  return value + 0;
}

/**
 * @param {string} where
 * @param {Record<string, any>} row
 * @returns {Prompt}
 */
function readPrompt(where, row) {
  checkNames(where, row, ["segment", "text"]);
  const text = "text" in row ? row.text : "";
  if (typeof text !== "string") {
    throw new PlanError(`${where}.text is ${shown(text)}, but must be text in quotation marks.`);
  }
  if (text.includes("|")) {
    throw new PlanError(`${where}.text contains '|', which separates segments; write the prompt without it.`);
  }
  if (HALF_CHARACTER.test(text)) {
    throw new PlanError(`${where}.text holds half a character (${shown(text)}), which no encoder can read; delete it.`);
  }
  const segment = checkNumber(`${where}.segment`, "segment", "segment" in row ? row.segment : 0, 0);
  return { segment, text };
}

/** @param {Prompt[]} prompts */
function checkPrompts(prompts) {
  const numbers = prompts.map((prompt) => prompt.segment);
  const twice = numbers.find((number) => numbers.indexOf(number) !== numbers.lastIndexOf(number));
  if (twice !== undefined) throw new PlanError(`prompts has two texts for segment ${twice}; keep one of them.`);
  if (numbers.length && !numbers.includes(0)) {
    throw new PlanError("prompts has no text for segment 0, but the first segment needs words of its own.");
  }
}

/**
 * @param {any} value
 * @returns {string} the value as JSON, shortened
 */
function shown(value) {
  // A number too large for JavaScript; JSON.stringify would call it null.
  const signs = Array.from(Math.abs(value) === Infinity ? String(value) : JSON.stringify(value));
  return signs.length <= SHOWN ? signs.join("") : `${signs.slice(0, SHOWN).join("")}…`;
}
