/** How the timeline looks; the colours are the page's own, so that it follows its themes. */

const RULES = `
.opensora-timeline { --ground: var(--comfy-input-bg, #222); --ink: var(--input-text, #ddd); --line: var(--border-color, #555);
  --faint: color-mix(in srgb, var(--ink) 60%, transparent); --accent: var(--p-primary-color, #4aa3ff);
  display: flex; flex-direction: column; gap: 5px; height: 100%; min-height: 0; box-sizing: border-box; padding: 2px;
  font: 12px/1.4 Inter, sans-serif; color: var(--ink); outline: none; user-select: none; border-radius: 6px; }
.opensora-timeline.in-panel { position: absolute; inset: 0 12px auto; height: 100%; overflow: auto; }
[data-node-id] .opensora-timeline { --ground: var(--component-node-widget-background, var(--comfy-input-bg, #222));
  --ink: var(--component-node-foreground, var(--input-text, #ddd)); }
.opensora-timeline:focus-visible { box-shadow: 0 0 0 1px var(--accent); }
.opensora-timeline-bar { display: flex; gap: 4px; flex: none; align-items: center; flex-wrap: wrap; }
.opensora-timeline-segment, .opensora-timeline-button, .opensora-timeline-field { font: inherit; color: inherit;
  background: var(--ground); border: 1px solid transparent; border-radius: 5px; padding: 2px 6px; height: 24px;
  box-sizing: border-box; outline: none; }
.opensora-timeline-segment option { background: var(--comfy-menu-bg, #222); color: var(--ink); }
.opensora-timeline-button { cursor: pointer; min-width: 26px; }
.opensora-timeline-button:hover, .opensora-timeline-segment:hover { border-color: var(--line); }
.opensora-timeline-bar :focus-visible { border-color: var(--accent); }
.opensora-timeline-numbers { display: flex; gap: 6px; flex-wrap: wrap; color: var(--faint); font-size: 12px; }
.opensora-timeline-numbers label { display: flex; gap: 4px; align-items: center; }
.opensora-timeline-numbers.nothing { opacity: .45; }
.opensora-timeline-field { width: 42px; padding: 2px 4px; color: var(--ink); appearance: textfield; }
.opensora-timeline-field:disabled { opacity: .4; }
.opensora-timeline-ruler { position: relative; height: 28px; flex: none; overflow: hidden; font-size: 12px; line-height: 14px;
  cursor: col-resize; touch-action: none; }
.opensora-timeline-mark { position: absolute; top: 0; bottom: 0; padding-left: 4px; white-space: nowrap;
  border-left: 1px solid var(--line); pointer-events: none; }
.opensora-timeline-mark small { display: block; font-size: 11px; color: var(--faint); }
.opensora-timeline-track { position: relative; height: 84px; flex: none; overflow: hidden; touch-action: none;
  background: var(--ground); border-radius: 5px; }
.opensora-timeline-span { --own: hsl(var(--hue) 42% 55%); position: absolute; box-sizing: border-box;
  border: 1px solid var(--own); border-top-width: 3px; border-radius: 4px; cursor: grab; overflow: hidden; contain: strict;
  background: color-mix(in srgb, var(--own) 32%, var(--ground)); }
.opensora-timeline-span.selected { outline: 2px solid var(--accent); outline-offset: -2px; z-index: 1; }
.opensora-timeline-span.unusable { filter: grayscale(1); border-style: dashed; opacity: .6; }
.opensora-timeline-film { position: absolute; left: 0; right: 0; bottom: 0; display: flex; pointer-events: none; opacity: .85; }
.opensora-timeline-film.single { justify-content: center; }
.opensora-timeline-tile { flex: none; height: 100%; background-repeat: no-repeat; }
.opensora-timeline-number, .opensora-timeline-strength { position: absolute; left: 3px; top: 1px; padding: 0 4px; color: #fff;
  background: #000a; border-radius: 3px; font-size: 12px; line-height: 16px; pointer-events: none; }
.opensora-timeline-strength { left: auto; right: 2px; top: auto; bottom: 2px; }
.opensora-timeline-covered { position: absolute; top: 0; bottom: 0; pointer-events: none;
  background: repeating-linear-gradient(135deg, #0008 0 4px, #fff3 4px 6px); }
.opensora-timeline-elsewhere { position: absolute; bottom: 0; height: 14px; box-sizing: border-box; padding: 0 3px; overflow: hidden;
  font-size: 10px; line-height: 13px; color: var(--faint); background: color-mix(in srgb, var(--ink) 12%, transparent);
  border: 1px solid color-mix(in srgb, var(--ink) 22%, transparent); border-radius: 3px; }
.opensora-timeline-before { position: absolute; top: 0; bottom: 0; box-sizing: border-box; border-radius: 4px;
  background: color-mix(in srgb, var(--ink) 10%, transparent); border: 1px dashed var(--faint); }
.opensora-timeline-head { position: absolute; top: 0; bottom: 0; width: 0; margin-left: -1px; pointer-events: none; z-index: 3;
  border-left: 2px solid var(--accent); }
.opensora-timeline-below { flex: 1 1 auto; min-height: 76px; display: flex; gap: 6px; }
.opensora-timeline-stage { flex: none; width: 124px; display: flex; flex-direction: column; align-items: center; gap: 2px; }
.opensora-timeline-picture { flex: 1 1 0; min-height: 0; max-width: 100%; display: flex; align-items: center;
  justify-content: center; text-align: center; font-size: 10px; color: var(--faint); background: var(--ground) no-repeat;
  border-radius: 5px; overflow: hidden; }
.opensora-timeline-video { flex: 1 1 0; min-height: 0; max-width: 100%; border-radius: 5px; }
.opensora-timeline [hidden] { display: none; }
.opensora-timeline-caption { flex: none; font-size: 12px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.opensora-timeline-prompt { flex: 1; min-width: 0; resize: none; font: inherit; color: inherit; background: var(--ground);
  border: 1px solid transparent; border-radius: 5px; padding: 5px 7px; user-select: text; outline: none; }
.opensora-timeline-prompt:focus-visible { border-color: var(--accent); }
.opensora-timeline-prompt:disabled { opacity: .5; }
.opensora-timeline-sentence { flex: none; height: 34px; overflow: auto; user-select: text; white-space: pre-line;
  color: var(--faint); line-height: 17px; }
.opensora-timeline.broken .opensora-timeline-track, .opensora-timeline.broken .opensora-timeline-below { opacity: .35;
  pointer-events: none; }
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
