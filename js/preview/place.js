/**
 * Puts a view into a node while it runs and takes it away without a trace: neither the size of the node nor what is
 * saved of it tells that it was there.
 */
import { HEIGHT, PreviewView } from "./view.js";

const NAME = "opensora_preview";
/** What the page, or we, add to of a node that gets a widget. */
const CALLS = ["onAdded", "onRemoved", "onResize", "onSerialize"];

export class Place {
  /**
   * @param {any} node
   * @param {() => void} lost called where the node goes while it runs, with the workflow it belongs to
   */
  constructor(node, lost) {
    this.node = node;
    this.view = new PreviewView();
    /** @type {number[]} */
    this.before = [...node.size];
    this.calls = CALLS.map((name) => (Object.hasOwn(node, name) ? node[name] : undefined));
    this.widget = node.addDOMWidget(NAME, "OSORA_PREVIEW", this.view.root, {
      serialize: false, getMinHeight: () => HEIGHT, hideOnZoom: false,
    });
    this.widget.serialize = false; // the option alone keeps it out of the prompt, but not out of saved workflows
    const needed = node.computeSize?.() ?? this.before;
    node.setSize?.([this.before[0], Math.max(this.before[1] + HEIGHT, needed[1])]);
    this.grown = [...node.size];
    const { onSerialize: saving, onRemoved: removing } = node;
    node.onSerialize = (/** @type {any} */ data) => {
      saving?.call(node, data);
      if (this.untouched()) data.size = [...this.before];
    };
    node.onRemoved = (/** @type {any[]} */ ...given) => {
      this.view.stop();
      lost();
      removing?.apply(node, given);
    };
    dirty(node);
  }

  /** Whether nobody has given the node another size in the meantime. */
  untouched() {
    return this.node.size[0] === this.grown[0] && this.node.size[1] === this.grown[1];
  }

  remove() {
    const { node, widget } = this;
    const restore = this.untouched();
    this.view.stop();
    CALLS.forEach((name, number) => {
      if (this.calls[number] === undefined) delete node[name];
      else node[name] = this.calls[number];
    });
    widget.onRemove?.();
    const place = node.widgets?.indexOf(widget) ?? -1;
    if (place >= 0) node.widgets.splice(place, 1);
    if (restore) node.setSize?.([...this.before]);
    dirty(node);
  }
}

/** @param {any} node */
function dirty(node) {
  node.graph?.setDirtyCanvas?.(true, true);
}
