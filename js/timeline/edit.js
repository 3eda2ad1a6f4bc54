/**
 * Edits of a plan's text: each rewrites its own entry and leaves format and order of everything else as they are.
 *
 * @import { ArrayNode, Member, ObjectNode } from "./json.js"
 * @import { Place, Plan, Prompt } from "./plan.js"
 */
import { bare, parseJson } from "./json.js";
import { DEFAULTS, STRATEGY_ORDER, formatPlan, parsePlan, strategyField, writtenPlace, writtenPrompt } from "./plan.js";

/**
 * Changes fields of one reference.
 *
 * @param {string} text a good plan
 * @param {number} number the entry
 * @param {Partial<Place>} fields
 * @returns {string}
 */
export function changeReference(text, number, fields) {
  if (parsePlan(text).notation === "json") return changeEntry(text, "references", number, fields, DEFAULTS);
  const groups = text.split(";");
  groups[number] = changedGroup(groups[number], fields);
  return groups.join(";");
}

/**
 * Changes the words of a segment, or the segment they hold from.
 *
 * @param {string} text
 * @param {number} number
 * @param {Partial<Prompt>} fields
 * @returns {string}
 */
export function changePrompt(text, number, fields) {
  return changeEntry(text, "prompts", number, fields, { segment: 0, text: "" });
}

/**
 * @param {string} text
 * @param {Partial<Place>} fields
 * @returns {string} with one reference more, the last one
 */
export function addReference(text, fields) {
  const place = { ...DEFAULTS, ...fields };
  const plan = parsePlan(text);
  if (plan.notation === "json") return addEntry(text, "references", writtenPlace(place), plan);
  return `${text};${STRATEGY_ORDER.map((name) => strategyField(name, place[name])).join(",")}`;
}

/**
 * Adds words; a mask strategy, which cannot hold any, becomes JSON.
 *
 * @param {string} text
 * @param {Prompt} prompt
 * @returns {string}
 */
export function addPrompt(text, prompt) {
  const plan = parsePlan(text);
  if (plan.notation === "strategy") return formatPlan({ ...plan, prompts: [prompt], notation: "json" });
  return addEntry(text, "prompts", writtenPrompt(prompt), plan);
}

/**
 * @param {string} text
 * @param {"references" | "prompts"} list
 * @param {number} number
 * @returns {string} without that entry
 */
export function removeEntry(text, list, number) {
  if (parsePlan(text).notation === "strategy") return text.split(";").filter((_, at) => at !== number).join(";");
  const { items, start, end } = listOf(text, list);
  if (items.length === 1) return splice(text, start, end, "[]");
  return number > 0
    ? splice(text, items[number - 1].end, items[number].end, "")
    : splice(text, items[0].start, items[1].start, "");
}

/**
 * @param {string} text
 * @param {number} start
 * @param {number} end
 * @param {string} put
 */
function splice(text, start, end, put) {
  return text.slice(0, start) + put + text.slice(end);
}

/**
 * @param {string} text
 * @returns {ObjectNode}
 */
function rootOf(text) {
  return /** @type {ObjectNode} */ (parseJson(text));
}

/**
 * @param {string} text
 * @param {string} list
 * @returns {ArrayNode}
 */
function listOf(text, list) {
  const member = rootOf(text).members.find((each) => each.name === list);
  return /** @type {ArrayNode} */ (/** @type {Member} */ (member).value);
}

/**
 * @param {string} text
 * @param {string} list
 * @param {number} number
 * @param {Record<string, any>} fields
 * @param {Record<string, any>} defaults
 */
function changeEntry(text, list, number, fields, defaults) {
  const entry = /** @type {ObjectNode} */ (listOf(text, list).items[number]);
  let changed = text.slice(entry.start, entry.end);
  for (const [name, value] of Object.entries(fields)) {
    const { members } = rootOf(changed);
    const member = members.find((each) => each.name === name);
    if (member) {
      if (/** @type {any} */ (member.value).value !== value) {
        changed = splice(changed, member.value.start, member.value.end, JSON.stringify(value));
      }
    } else if (value !== defaults[name]) changed = withMember(changed, members, name, value);
  }
  return splice(text, entry.start, entry.end, changed);
}

/**
 * An object with a field more, set apart like its last one.
 *
 * @param {string} object
 * @param {Member[]} members
 * @param {string} name
 * @param {any} value
 */
function withMember(object, members, name, value) {
  const written = `${JSON.stringify(name)}: ${JSON.stringify(value)}`;
  if (!members.length) return `{${written}}`;
  const last = members[members.length - 1];
  const gap = members.length > 1 ? spaceBefore(object, last.start) : lineBefore(object, last.start) || " ";
  return splice(object, last.value.end, last.value.end, `,${gap}${written}`);
}

/**
 * @param {string} text
 * @param {number} at
 * @returns {string} the white space in front of a place
 */
function spaceBefore(text, at) {
  return /** @type {RegExpExecArray} */ (/\s*$/.exec(text.slice(0, at)))[0];
}

/**
 * @param {string} text
 * @param {number} at
 * @returns {string} that white space where it starts a line, else ""
 */
function lineBefore(text, at) {
  const space = spaceBefore(text, at);
  return space.includes("\n") ? space : "";
}

/**
 * @param {string} text
 * @param {"references" | "prompts"} list
 * @param {string} entry
 * @param {Plan} plan
 */
function addEntry(text, list, entry, plan) {
  if (!bare(text)) return `{\n  "${list}": [\n    ${entry}\n  ]\n}`;
  if (plan[list].length) {
    const { items } = listOf(text, list);
    const last = items[items.length - 1];
    const gap = items.length > 1 ? spaceBefore(text, last.start) : lineBefore(text, last.start) || " ";
    return splice(text, last.end, last.end, `,${gap}${entry}`);
  }
  const root = rootOf(text);
  const member = root.members.find((each) => each.name === list);
  if (member) return splice(text, member.value.start, member.value.end, `[${entry}]`);
  const last = root.members[root.members.length - 1];
  if (!last) return splice(text, root.start, root.end, `{"${list}": [${entry}]}`);
  return splice(text, last.value.end, last.value.end, `,${lineBefore(text, last.start) || " "}"${list}": [${entry}]`);
}

/**
 * @param {string} group
 * @param {Partial<Place>} fields
 * @returns {string} a group of a mask strategy with other values; fields it lacks are added where they are needed
 */
function changedGroup(group, fields) {
  const written = group.split(",");
  STRATEGY_ORDER.forEach((name, at) => {
    const value = fields[name];
    if (value === undefined) return;
    if (at < written.length && Number(written[at].replaceAll("_", "")) === value) return;
    if (at >= written.length && value === DEFAULTS[name]) return;
    while (written.length <= at) {
      const missing = STRATEGY_ORDER[written.length];
      written.push(String(DEFAULTS[missing]));
    }
    const space = /** @type {RegExpExecArray} */ (/^\s*/.exec(written[at]))[0];
    written[at] = space + String(value);
  });
  return written.join(",");
}
