/**
 * The ruler: latent frames, and the frame and second each of them begins at.
 *
 * @import { Track } from "./geometry.js"
 * @import { Clip } from "./view.js"
 */
import { element } from "./elements.js";
import { marks } from "./geometry.js";

const APART = 70;

/**
 * @param {HTMLElement} ruler
 * @param {Clip} clip
 * @param {Track} track
 * @param {string} words what the numbers are
 */
export function drawRuler(ruler, clip, track, words) {
  const found = marks(track, APART).map((latent) => {
    const mark = element("div", "mark", String(latent));
    const frame = clip.rules.frameOf(latent);
    mark.append(element("small", "", `${frame} · ${(frame / clip.rate).toFixed(2)} s`));
    mark.style.left = `${(latent * 100) / track.clip}%`;
    return mark;
  });
  ruler.title = words;
  ruler.replaceChildren(...found);
}
