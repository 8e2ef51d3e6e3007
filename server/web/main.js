// The page: who is signed in, which view is shown, whether the line to the server lives.

import { Unauthorized, dropToken, get, keepToken, listen, token } from "./api.js";
import { fill, h } from "./dom.js";
import * as audit from "./views/audit.js";
import * as privacy from "./views/privacy.js";
import * as run from "./views/run.js";
import * as runs from "./views/runs.js";
import * as sites from "./views/sites.js";

/**
 * What a view is given, and what it gives back.
 * @typedef {{ root: HTMLElement, argument: string, signal: AbortSignal, runs: Map<string, any>, fail: (error: unknown) => void }} Stage
 * @typedef {{ heard?: (name: string, data: any) => void, back?: () => void, close?: () => void }} View
 */

/** @type {Record<string, { title: string, show: (stage: Stage) => View }>} */
const VIEWS = { runs, run, sites, privacy, audit };

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const banner = /** @type {HTMLElement} */ (document.getElementById("banner"));
const line = /** @type {HTMLElement} */ (document.getElementById("line"));

/** Every run that was heard of, newest last. @type {Map<string, any>} */
const known = new Map();
/** @type {{ view: View, leave: AbortController } | null} */
let shown = null;
/** @type {AbortController | null} */
let line_open = null;

/** Takes the token out of the address, so that it is in no history and on no screen. */
function takeToken() {
  const found = /^#token=([0-9a-fA-F]+)$/.exec(location.hash);
  if (!found) return;
  keepToken(found[1]);
  history.replaceState(null, "", `${location.pathname}#/runs`);
}

function leave() {
  shown?.leave.abort();
  shown?.view.close?.();
  shown = null;
}

/** Shows what the address says. @param {boolean} [moved] whether somebody went there */
function route(moved = true) {
  takeToken();
  if (!token()) return signIn("");
  if (!line_open) connect();
  const [, name = "runs", argument = ""] = /^#\/([a-z]*)(?:\/([0-9a-z]*))?/.exec(location.hash) ?? [];
  const chosen = name === "runs" && argument ? "run" : name || "runs";
  const view = VIEWS[chosen] ?? VIEWS.runs;
  leave();
  for (const link of document.querySelectorAll("#nav a")) {
    const here = link.getAttribute("href") === `#/${chosen === "run" ? "runs" : chosen}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${view.title} · Consortia`;
  const root = h("div", { class: "view" });
  main.replaceChildren(root);
  if (line.dataset.state !== "lost") banner.hidden = true;
  const control = new AbortController();
  const stage = { root, argument, signal: control.signal, runs: known, fail };
  shown = { view: view.show(stage), leave: control };
  if (moved) main.focus({ preventScroll: true });
  scrollTo(0, 0);
}

/** Says what went wrong; nothing is wrong with a view that was left. @param {unknown} error */
function fail(error) {
  if (error instanceof DOMException && error.name === "AbortError") return;
  if (error instanceof Unauthorized) return signIn("The server does not take this token.");
  const message = /** @type {Error} */ (error).message;
  fill(banner, `${message[0].toUpperCase()}${message.slice(1)}.`);
  banner.hidden = false;
}

/** @param {string} why */
function signIn(why) {
  leave();
  line_open?.abort();
  line_open = null;
  dropToken();
  mark("denied", "Not signed in");
  banner.hidden = true;
  document.title = "Sign in · Consortia";
  const input = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const form = h("form", { class: "card sign-in" },
    h("h1", {}, "Sign in"),
    why && h("p", { class: "error", role: "alert" }, why),
    h("p", {}, "On the server's machine, ", h("code", {}, "consortia server dashboard DIR"), " prints an address that opens this page. Or paste the token from ", h("code", {}, "operator/admin.token"), "."),
    h("label", { for: "token" }, "Token"), input,
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Sign in")));
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    keepToken(input.value);
    if (!location.hash.startsWith("#/")) history.replaceState(null, "", "#/runs");
    route();
  });
  main.replaceChildren(form);
  input.focus();
}

/** @param {string} state @param {string} text */
function mark(state, text) {
  line.dataset.state = state;
  fill(/** @type {Element} */ (document.getElementById("line-text")), text);
}

/** Listens for as long as somebody is signed in. */
function connect() {
  const control = new AbortController();
  line_open = control;
  mark("waiting", "Connecting");
  let wake = () => {};
  let lost = false;
  listen((name, data) => {
    if (name === "run") known.set(data.run, data);
    shown?.view.heard?.(name, data);
  }, (state, again) => {
    if (state === "denied") return signIn("The server does not take this token.");
    if (state === "live") {
      mark("live", "Live");
      if (!lost) return;
      lost = false;
      banner.hidden = true;
      shown?.view.back?.();
      return;
    }
    lost = true;
    mark("lost", "Not connected");
    const retry = h("button", { type: "button", onclick: () => wake() }, "Try now");
    fill(banner, `The line to the server is lost; what is shown may be old. Next attempt in ${again} s. `, retry);
    banner.hidden = false;
  }, control.signal, (hurry) => { wake = hurry; });
}

/** The next of system, light, dark. */
function turnTheme() {
  const root = document.documentElement;
  const order = ["", "light", "dark"];
  const next = order[(order.indexOf(root.dataset.theme ?? "") + 1) % order.length];
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  try {
    localStorage.setItem("consortia.theme", next);
  } catch {
    // It will be forgotten, then.
  }
  nameTheme();
  dispatchEvent(new Event("themechange"));
}

function nameTheme() {
  fill(/** @type {Element} */ (document.getElementById("theme")), `Theme: ${document.documentElement.dataset.theme ?? "system"}`);
}

document.getElementById("theme")?.addEventListener("click", turnTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("themechange")));
document.getElementById("skip")?.addEventListener("click", (event) => {
  // The address names the view; it must not be lost.
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", () => route());
nameTheme();
route(false);
if (token()) get("status").catch(fail);
