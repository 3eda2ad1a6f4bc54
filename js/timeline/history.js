/** Undo and redo over whole texts; nothing of the page. */

const MOST = 200;

export class History {
  /** @param {string} text */
  constructor(text) {
    this.texts = [text];
    this.at = 0;
  }

  /** @returns {string} */
  get current() {
    return this.texts[this.at];
  }

  /**
   * A new text; what was undone before is forgotten.
   *
   * @param {string} text
   */
  push(text) {
    if (text === this.current) return;
    this.texts = [...this.texts.slice(0, this.at + 1), text].slice(-MOST);
    this.at = this.texts.length - 1;
  }

  /** @returns {string} the text before, or the oldest */
  undo() {
    this.at = Math.max(0, this.at - 1);
    return this.current;
  }

  /** @returns {string} */
  redo() {
    this.at = Math.min(this.texts.length - 1, this.at + 1);
    return this.current;
  }
}
