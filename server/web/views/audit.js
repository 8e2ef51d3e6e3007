// The audit log, newest records first.

import { get } from "../api.js";
import { fill, h, rows } from "../dom.js";
import { moment } from "../format.js";

export const title = "Audit log";

/** Fields that have a column of their own, and the count of the database's changes, which is for `audit verify`. */
const COLUMNS = ["time", "event", "run", "database"];

/** @param {any} entry */
function row({ sequence, hash, record }) {
  const rest = Object.entries(record).filter(([name, value]) => !COLUMNS.includes(name) && value !== null && value !== "");
  const short = (/** @type {any} */ value) => (typeof value === "string" && /^[0-9a-f]{64}$/.test(value) ? `${value.slice(0, 12)}…` : String(value));
  return h("tr", {},
    h("td", { class: "number muted", title: hash, "data-label": "No." }, sequence),
    h("td", { class: "nowrap", "data-label": "Time" }, moment(record.time / 1e6)),
    h("th", { scope: "row" }, record.event.replaceAll("_", " ")),
    h("td", { "data-label": "Run" }, record.run ? h("a", { href: `#/runs/${record.run}`, class: "id" }, record.run) : h("span", { class: "muted" }, "–")),
    h("td", { "data-label": "What" }, h("div", {}, rest.map(([name, value]) => h("span", { class: "field" }, h("span", { class: "muted" }, `${name.replaceAll("_", " ")} `), short(value))))));
}

/** @param {import("../main.js").Stage} stage @returns {import("../main.js").View} */
export function show({ root, signal, fail }) {
  const body = h("tbody", {});
  const older = h("button", { type: "button", hidden: true, onclick: () => more() }, "Older records");
  const heads = ["No.", "Time", "Event", "Run", "What"];
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Audit log")),
    h("p", { class: "lead" }, "What the server did and was told, as a chain of hashes. Whether the chain holds: ", h("code", {}, "consortia audit verify DIR")),
    h("div", { class: "scroll stack card flush", tabindex: "0", role: "region", "aria-label": "Audit log" },
      h("table", {}, h("thead", {}, h("tr", {}, heads.map((name, index) => h("th", { scope: "col", class: index === 0 ? "number" : null }, name)))), body)),
    h("div", { class: "buttons" }, older));

  /** By number, newest first. @type {Map<number, any>} */
  let records = new Map();
  /** @type {number | null} */
  let next = null;
  let paged = false;
  const draw = () => rows(body, [...records.values()].sort((a, b) => b.sequence - a.sequence), (entry) => String(entry.sequence), row);
  async function refresh() {
    try {
      const page = await get("audit?limit=100", signal);
      // A gap would be no log: what is older is kept only where it joins on.
      const joined = page.records.some((/** @type {any} */ entry) => records.has(entry.sequence));
      if (!joined) records = new Map();
      for (const entry of page.records) records.set(entry.sequence, entry);
      if (!joined || !paged) next = page.next;
      if (!paged) records = new Map([...records].sort((a, b) => b[0] - a[0]).slice(0, 100));
      older.hidden = next === null;
      draw();
    } catch (error) {
      fail(error);
    }
  }
  async function more() {
    try {
      const page = await get(`audit?limit=100&before=${next}`, signal);
      paged = true;
      for (const entry of page.records) records.set(entry.sequence, entry);
      next = page.next;
      older.hidden = next === null;
      draw();
    } catch (error) {
      fail(error);
    }
  }
  refresh();
  let due = 0;
  return {
    heard: () => { due ||= setTimeout(() => { due = 0; refresh(); }, 2000); },
    back: refresh,
    close: () => clearTimeout(due),
  };
}
