// Questions before something is done. The browser's own dialog keeps the focus inside and gives it back.

import { fill, h } from "./dom.js";

let serial = 0;

/**
 * Opens a dialog and returns it. It closes by Escape, by its first button and by `close()`.
 * @param {string} title
 * @param {(Node | string)[]} body
 * @param {(Node | string)[]} buttons
 * @param {string} [leave] what the button is called that does nothing
 * @returns {HTMLDialogElement}
 */
export function open(title, body, buttons, leave = "Cancel") {
  serial += 1;
  const id = `dialog-${serial}`;
  const dialog = h("dialog", { "aria-labelledby": id },
    h("h2", { id }, title),
    h("div", { class: "dialog-body" }, body),
    h("div", { class: "buttons" }, h("button", { type: "button", onclick: () => dialog.close() }, leave), buttons));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Asks before something is done, and does it.
 * @param {{ title: string, text: string[], action: string, danger?: boolean, typed?: string, perform: () => Promise<void> }} question
 *   `typed`: what has to be typed before it can be done
 */
export function confirm({ title, text, action, danger = false, typed, perform }) {
  const failed = h("p", { class: "error", role: "alert" });
  const button = h("button", { type: "submit", class: danger ? "danger" : "primary", disabled: Boolean(typed) }, action);
  const body = text.map((line) => h("p", {}, line));
  const form = h("form", { method: "dialog" });
  if (typed) {
    const input = h("input", {
      id: `typed-${serial}`, autocomplete: "off", spellcheck: "false", autofocus: true,
      oninput: () => { button.disabled = input.value.trim() !== typed; },
    });
    body.push(h("label", { for: `typed-${serial}` }, "Type ", h("strong", {}, typed), " to confirm"), input);
  }
  form.append(...body, failed);
  form.id = `form-${serial}`;
  button.setAttribute("form", form.id);
  const dialog = open(title, [form], [button]);
  form.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    try {
      await perform();
      dialog.close();
    } catch (error) {
      fill(failed, /** @type {Error} */ (error).message);
      button.disabled = false;
    }
  });
}
