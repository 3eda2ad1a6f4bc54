/**
 * The play head: a moment of the clip, and the picture that a reference gives there.
 *
 * @import { Span } from "./rules.js"
 * @import { Clip } from "./view.js"
 */
import { element } from "./elements.js";
import { aspectOf, putPicture } from "./pictures.js";

export class PlayHead {
  constructor() {
    this.latent = 0;
    this.line = element("div", "head");
    this.stage = element("div", "stage");
    this.picture = element("div", "picture");
    this.video = /** @type {HTMLVideoElement} */ (element("video", "video"));
    Object.assign(this.video, { muted: true, preload: "auto", hidden: true });
    this.caption = element("div", "caption");
    this.stage.append(this.picture, this.video, this.caption);
  }

  /**
   * @param {Clip} clip
   * @param {Span[]} spans of the segment that is shown; where two meet, the later one wins
   * @param {string} free what is said of frames that no reference fills
   */
  draw(clip, spans, free) {
    this.latent = Math.min(Math.max(0, this.latent), clip.latents - 1);
    const { latent } = this;
    const there = spans.filter((each) => !each.problem && each.target <= latent && latent < each.target + each.length);
    const span = there[there.length - 1];
    const frame = clip.rules.frameOf(latent);
    this.line.style.left = `${((latent + 0.5) * 100) / clip.latents}%`;
    this.picture.style.aspectRatio = String(aspectOf(clip));
    const shown = span && putPicture(this.picture, clip, span.reference, span.source + latent - span.target);
    const film = span && !shown ? clip.videos[span.reference] : undefined;
    if (film && span) this.seek(film, (clip.rules.frameOf(span.source + latent - span.target) + 0.5) / clip.rate);
    this.video.hidden = !film;
    this.picture.hidden = Boolean(film);
    if (!shown) this.picture.style.backgroundImage = "";
    this.picture.textContent = span ? (shown ? "" : String(span.reference)) : free;
    this.caption.textContent = `${latent} · ${frame} · ${(frame / clip.rate).toFixed(2)} s`;
  }

  /**
   * Shows a moment of a file that nothing has read yet; how many frames a second it has only the run will tell.
   *
   * @param {string} film
   * @param {number} second
   */
  seek(film, second) {
    if (this.video.getAttribute("src") !== film) this.video.src = film;
    this.video.currentTime = second;
  }
}
