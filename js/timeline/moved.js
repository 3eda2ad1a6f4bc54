/**
 * Notices that pictures have got other numbers: where one goes, the page moves the wires behind it up by one socket, and
 * what the plan says holds for other pictures from then on.
 */

export class Moved {
  constructor() {
    /** @type {Record<string, string>} */
    this.wires = {};
    /** The plan when they moved: who changes it has seen them. */
    this.text = "";
    /** @type {string[]} */
    this.moves = [];
  }

  /**
   * @param {Record<string, string>} wires what is at which socket now
   * @param {string} text the plan
   * @returns {string} "picture1 → picture0", "" where nothing has moved or the plan was changed since
   */
  look(wires, text) {
    const before = this.wires;
    const moves = Object.keys(wires).flatMap((socket) => {
      if (wires[socket] === before[socket]) return [];
      const from = Object.keys(before).find((each) => before[each] === wires[socket] && wires[each] !== before[each]);
      return from ? [`${from} → ${socket}`] : [];
    });
    if (moves.length) [this.moves, this.text] = [moves, text];
    else if (text !== this.text) this.moves = [];
    this.wires = wires;
    return this.moves.join(", ");
  }
}
