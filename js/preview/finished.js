/** A finished video plays by itself, again and again; it has no sound, and without any a browser lets it. */

const LOOK_MS = 100;
const LOOKS = 80;

/** Those that were started once: whoever stops one wants it to stand still. */
const started = new WeakSet();

/**
 * Starts every video that comes to a node in the next seconds. The one of the run before stands there until the new one
 * is loaded.
 *
 * @param {any} node
 */
export function playWhenThere(node) {
  let left = LOOKS;
  const timer = setInterval(() => {
    const video = videoOf(node);
    if (video && !started.has(video)) play(video);
    left -= 1;
    if (!left) clearInterval(timer);
  }, LOOK_MS);
}

/**
 * @param {any} node
 * @returns {HTMLVideoElement | null}
 */
function videoOf(node) {
  const found = node.videoContainer?.querySelector("video");
  return found ?? document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"] video`);
}

/** @param {HTMLVideoElement} video */
function play(video) {
  started.add(video);
  video.loop = true;
  video.muted = true;
  video.autoplay = true; // also what it shows after the next run, where the page keeps the element
  video.play().catch(() => {}); // where the browser does not want to, the button is still there
}
