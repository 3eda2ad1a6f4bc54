/**
 * JSON with the place of everything in its text, so that an edit can rewrite one number and leave the rest as it is.
 *
 * @typedef {{ kind: "scalar", value: string | number | boolean | null, start: number, end: number }} Scalar
 * @typedef {{ name: string, start: number, value: JsonNode }} Member
 * @typedef {{ kind: "object", members: Member[], start: number, end: number }} ObjectNode
 * @typedef {{ kind: "array", items: JsonNode[], start: number, end: number }} ArrayNode
 * @typedef {Scalar | ObjectNode | ArrayNode} JsonNode
 */

/** A text that is no plan; its message is a whole sentence. */
export class PlanError extends Error {}

const DEEPEST = 50;
const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const STRING = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
const WORD = /true|false|null/y;
const NO_NUMBER = /NaN|-?Infinity/y;
/** What stands around a text and says nothing, as Python counts it; files of some editors begin with U+FEFF. */
const AROUND = /[\s\x1c-\x1f\x85]*/y;

/**
 * @param {string} text
 * @returns {string} without what stands around it
 */
export function bare(text) {
  return text.replace(/^[\s\x1c-\x1f\x85]+|[\s\x1c-\x1f\x85]+$/g, "");
}

/**
 * @param {string} text
 * @returns {JsonNode}
 */
export function parseJson(text) {
  const reader = new Reader(text);
  reader.take(AROUND);
  const found = reader.value(0);
  reader.take(AROUND);
  if (reader.at < text.length) reader.fail();
  return found;
}

/**
 * @param {JsonNode} node
 * @returns {any} what JSON.parse gives
 */
export function valueOf(node) {
  if (node.kind === "scalar") return node.value;
  if (node.kind === "array") return node.items.map(valueOf);
  return Object.fromEntries(node.members.map((member) => [member.name, valueOf(member.value)]));
}

class Reader {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  space() {
    this.take(SPACE);
  }

  /** @returns {never} */
  fail() {
    const before = this.text.slice(0, this.at).split("\n");
    throw new PlanError(
      `The plan is not readable JSON (line ${before.length}, character ${before[before.length - 1].length + 1}); ` +
        'write for example {"references": [{"reference": 0, "at": 0}]}.',
    );
  }

  /**
   * @param {RegExp} pattern sticky
   * @returns {string | null}
   */
  take(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (!found) return null;
    this.at += found[0].length;
    return found[0];
  }

  /**
   * @param {string} sign
   * @returns {boolean}
   */
  skip(sign) {
    this.space();
    if (this.text[this.at] !== sign) return false;
    this.at += 1;
    return true;
  }

  /**
   * @param {number} depth
   * @returns {JsonNode}
   */
  value(depth) {
    if (depth > DEEPEST) this.fail();
    this.space();
    const sign = this.text[this.at];
    if (sign === "{") return this.object(depth);
    if (sign === "[") return this.array(depth);
    const start = this.at;
    const wrong = this.take(NO_NUMBER);
    if (wrong) throw new PlanError(`The plan holds ${wrong}, which is no number; write one.`);
    const found = this.take(STRING) ?? this.take(WORD) ?? this.take(NUMBER);
    if (found === null) this.fail();
    return { kind: "scalar", value: JSON.parse(found), start, end: this.at };
  }

  /**
   * @param {number} depth
   * @returns {ArrayNode}
   */
  array(depth) {
    const start = this.at++;
    /** @type {JsonNode[]} */
    const items = [];
    if (!this.skip("]")) {
      do items.push(this.value(depth + 1));
      while (this.skip(","));
      if (!this.skip("]")) this.fail();
    }
    return { kind: "array", items, start, end: this.at };
  }

  /**
   * @param {number} depth
   * @returns {ObjectNode}
   */
  object(depth) {
    const start = this.at++;
    /** @type {Member[]} */
    const members = [];
    if (!this.skip("}")) {
      do members.push(this.member(depth));
      while (this.skip(","));
      if (!this.skip("}")) this.fail();
    }
    const seen = new Set();
    const twice = members.map(({ name }) => name).find((name) => seen.size === seen.add(name).size);
    if (twice !== undefined) {
      throw new PlanError(`The plan says ${JSON.stringify(twice)} twice in one object; keep one of them.`);
    }
    return { kind: "object", members, start, end: this.at };
  }

  /**
   * @param {number} depth
   * @returns {Member}
   */
  member(depth) {
    this.space();
    const start = this.at;
    const name = this.take(STRING);
    if (name === null || !this.skip(":")) this.fail();
    return { name: JSON.parse(name), start, value: this.value(depth + 1) };
  }
}
