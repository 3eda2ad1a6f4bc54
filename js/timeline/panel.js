/**
 * The timeline in the page's panel at the right. The panel draws widgets it has no field for on a small canvas of its own;
 * over that canvas lies a second view of the same text.
 *
 * @import { TimelineView } from "./view.js"
 */
import { app } from "../../../scripts/app.js";

/**
 * @param {any} widget the one that holds the view on the node
 * @param {() => TimelineView} make
 * @param {(view: TimelineView) => void} follow
 */
export function showInPanel(widget, make, follow) {
  const draw = widget.draw;
  /** @type {TimelineView | null} */
  let shown = null;
  widget.draw = function (/** @type {any} */ pen, /** @type {any[]} */ ...given) {
    const place = placeOf(pen?.canvas);
    if (!place) return draw?.call(this, pen, ...given);
    // The panel leaves its own measures on the widget, by which the page would then lay out the node.
    widget.width = undefined;
    app.canvas?.setDirty?.(true, true);
    if (shown && place.contains(shown.root)) return undefined;
    shown?.root.remove();
    shown = make();
    shown.root.classList.add("in-panel");
    place.append(shown.root);
    follow(shown);
    return undefined;
  };
}

/**
 * @param {any} canvas that a widget is drawn on
 * @returns {HTMLElement | null} what is around it, where it is not the page's large one
 */
function placeOf(canvas) {
  if (!(canvas instanceof HTMLCanvasElement) || !canvas.isConnected) return null;
  return [app.canvas?.canvas, app.canvas?.bgcanvas].includes(canvas) ? null : canvas.parentElement;
}
