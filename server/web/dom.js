// Elements without markup: nothing that a server or a site says is ever read as HTML.

import { sentence } from "./format.js";

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * Makes an element. Attributes named `on...` are listeners; `true` sets a flag, `false`, `null` and `undefined` leave it out.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {any}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

/**
 * @param {(Child | Child[])[]} children
 * @returns {(Node | string)[]}
 */
function nodes(children) {
  const found = [];
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    found.push(typeof child === "number" ? String(child) : child);
  }
  return found;
}

/**
 * A sentence of the server's: with a capital at its beginning, and what stands between backticks as code.
 * @param {string} text
 * @returns {(Node | string)[]}
 */
export function prose(text) {
  const parts = sentence(text).split("`");
  if (parts.length % 2 === 0) return [sentence(text)];
  return parts.map((part, place) => (place % 2 === 0 ? part : h("code", {}, part)));
}

/**
 * Puts these children in place of an element's own, unless they say the same.
 * @param {Element} element
 * @param {...(Child | Child[])} children
 */
export function fill(element, ...children) {
  const fresh = nodes(children);
  if (fresh.length === 1 && typeof fresh[0] === "string" && element.textContent === fresh[0] && !element.firstElementChild) return;
  element.replaceChildren(...fresh);
}

/**
 * Brings the rows of a table up to date. Rows that say the same stay as they are; focus stays where it was.
 * @template T
 * @param {Element} body
 * @param {T[]} items
 * @param {(item: T) => string} key
 * @param {(item: T) => Element} render
 */
export function rows(body, items, key, render) {
  /** @type {Map<string, any>} */
  const known = new Map();
  for (const row of Array.from(body.children)) known.set(/** @type {any} */ (row).rowKey, row);
  let place = body.firstElementChild;
  for (const item of items) {
    const name = key(item);
    const said = JSON.stringify(item);
    let row = known.get(name);
    known.delete(name);
    if (!row || row.rowSaid !== said) {
      const fresh = /** @type {any} */ (render(item));
      fresh.rowKey = name;
      fresh.rowSaid = said;
      if (row) {
        const focused = row.contains(document.activeElement) && document.activeElement?.getAttribute("data-keep");
        if (place === row) place = fresh;
        row.replaceWith(fresh);
        if (focused) fresh.querySelector(`[data-keep="${focused}"]`)?.focus();
      }
      row = fresh;
    }
    if (place === row) place = row.nextElementSibling;
    else body.insertBefore(row, place);
  }
  for (const row of known.values()) row.remove();
}

/**
 * Says something once, to eyes and to screen readers.
 * @param {string} text
 * @param {"good" | "bad"} [kind]
 */
export function say(text, kind = "good") {
  const toast = h("div", { class: "toast", "data-kind": kind }, text);
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: () => toast.remove() }, "×");
  toast.append(close);
  document.getElementById("toasts")?.append(toast);
  setTimeout(() => toast.remove(), kind === "bad" ? 15000 : 6000);
}
