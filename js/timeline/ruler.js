/**
 * The ruler: latent frames, and the frame and second each of them begins at.
 *
 * @import { Track } from "./geometry.js"
 * @import { Clip } from "./view.js"
 */
import { marks } from "./geometry.js";

/**
 * @param {HTMLElement} ruler
 * @param {Clip} clip
 * @param {Track} track
 */
export function drawRuler(ruler, clip, track) {
  const found = marks(track).map((latent) => {
    const mark = document.createElement("span");
    const frame = clip.rules.frameOf(latent);
    mark.textContent = `${latent}·${frame}`;
    mark.title = `Latent frame ${latent}, frame ${frame}, ${(frame / clip.rate).toFixed(2)} s`;
    mark.style.left = `${(latent * 100) / track.clip}%`;
    return mark;
  });
  ruler.title = `${track.clip} latent frames, ${clip.rules.frames(track.clip)} frames`;
  ruler.replaceChildren(...found);
}
