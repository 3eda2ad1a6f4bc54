/** How the timeline looks; the colours are the page's own, so that it follows its themes. */

const RULES = `
.opensora-timeline { display: flex; flex-direction: column; gap: 4px; height: 100%; min-height: 0; box-sizing: border-box;
  font: 12px/1.4 sans-serif; color: var(--input-text, #ddd); outline: none; user-select: none; }
.opensora-timeline:focus-visible { box-shadow: 0 0 0 1px var(--p-primary-color, #6cf); }
.opensora-timeline-bar { display: flex; gap: 4px; flex: none; }
.opensora-timeline-bar > * { font: inherit; color: inherit; background: var(--comfy-input-bg, #222);
  border: 1px solid var(--border-color, #555); border-radius: 4px; padding: 1px 6px; cursor: pointer; }
.opensora-timeline-ruler { position: relative; height: 16px; flex: none; overflow: hidden; opacity: .8; font-size: 10px; }
.opensora-timeline-ruler > span { position: absolute; padding-left: 2px; border-left: 1px solid currentColor; }
.opensora-timeline-track { position: relative; height: 84px; flex: none; overflow: hidden; touch-action: none;
  background: var(--comfy-input-bg, #222); border-radius: 4px; }
.opensora-timeline-span { position: absolute; box-sizing: border-box; border: 1px solid #8bf; border-radius: 3px;
  background: #357 center / cover no-repeat; cursor: grab; overflow: hidden; contain: strict; }
.opensora-timeline-span.selected { border: 2px solid #fff; z-index: 1; }
.opensora-timeline-span.unusable { filter: grayscale(1); border-style: dashed; opacity: .6; }
.opensora-timeline-number { position: absolute; left: 2px; top: 0; padding: 0 3px; color: #fff; background: #000a;
  border-radius: 3px; font-size: 10px; pointer-events: none; }
.opensora-timeline-before { position: absolute; top: 0; bottom: 0; background: #7776; border: 1px dotted #aaa;
  box-sizing: border-box; }
.opensora-timeline-overlap { position: absolute; bottom: 0; height: 5px; background: #fa3; pointer-events: none;
  z-index: 2; }
.opensora-timeline-words { flex: 1 1 auto; min-height: 34px; display: flex; }
.opensora-timeline-prompt { flex: 1; resize: none; font: inherit; color: inherit; background: var(--comfy-input-bg, #222);
  border: 1px solid var(--border-color, #555); border-radius: 4px; user-select: text; }
.opensora-timeline-sentence { flex: none; height: 34px; overflow: auto; user-select: text; }
.opensora-timeline.broken .opensora-timeline-track { opacity: .4; pointer-events: none; }
.opensora-timeline.broken .opensora-timeline-sentence { color: var(--error-text, #f66); }
`;
const ID = "opensora-timeline-style";

/** Puts the rules into the page, once. */
export function addStyle() {
  if (document.getElementById(ID)) return;
  const style = document.createElement("style");
  style.id = ID;
  style.textContent = RULES;
  document.head.append(style);
}
