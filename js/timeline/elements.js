/** Small pieces of the view. */

/**
 * @param {string} tag
 * @param {string} name
 * @param {string} [text]
 * @returns {HTMLElement}
 */
export function element(tag, name, text = "") {
  const found = document.createElement(tag);
  if (name) found.className = `opensora-timeline-${name}`;
  found.textContent = text;
  return found;
}

/**
 * @param {string} text
 * @param {string} title
 * @param {() => void} press
 */
export function button(text, title, press) {
  const found = element("button", "button", text);
  found.title = title;
  found.setAttribute("aria-label", title);
  let held = false;
  found.addEventListener("pointerdown", (event) => (held = event.button === 0));
  // Not "click", which comes after the page has looked for changes; a key presses without a pointer.
  found.addEventListener("pointerup", () => {
    if (held) press();
    held = false;
  });
  found.addEventListener("pointerleave", () => (held = false));
  found.addEventListener("keydown", (event) => {
    if ((event.key === "Enter" || event.key === " ") && !event.repeat) press();
  });
  return found;
}

/**
 * A field keeps the keys that write, and leaves the page those that run the graph.
 *
 * @param {HTMLElement} field
 * @param {() => void} commit takes over what is written
 */
export function keepKeys(field, commit) {
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) commit();
    else event.stopPropagation();
  });
}

/**
 * @param {HTMLElement} found
 * @param {number} start
 * @param {number} length
 * @param {number} latents of the clip
 */
export function across(found, start, length, latents) {
  found.style.left = `${(start * 100) / latents}%`;
  found.style.width = `${(length * 100) / latents}%`;
}
