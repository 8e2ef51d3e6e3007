// All runs, and a plan to make another.

import { get, post } from "../api.js";
import { open } from "../dialogs.js";
import { fill, h, prose, rows, say } from "../dom.js";
import { STATES, bytes, duration } from "../format.js";

export const title = "Runs";

/** @param {string} state */
export function badge(state) {
  return h("span", { class: "badge", "data-state": state }, STATES[state] ?? state);
}

/** @param {any} run */
export function progress(run) {
  const label = `${run.rounds_done} of ${run.rounds} rounds`;
  return h("span", { class: "progress" },
    h("progress", { max: run.rounds, value: run.rounds_done, "aria-label": `${run.name}: ${label}` }),
    h("span", { class: "muted number" }, `${run.rounds_done} / ${run.rounds}`));
}

/** @param {any} run */
function row(run) {
  return h("tr", {},
    h("th", { scope: "row" },
      h("a", { href: `#/runs/${run.run}`, "data-keep": "run" }, run.name),
      h("div", { class: "muted id" }, run.run, run.rehearsal && " · seeded")),
    h("td", { "data-label": "State" }, badge(run.state)),
    h("td", { "data-label": "Rounds" }, progress(run)),
    h("td", { class: "muted message" }, h("span", {}, prose(run.message))));
}

/** @param {import("../main.js").Stage} stage @returns {import("../main.js").View} */
export function show({ root, signal, runs, fail }) {
  const facts = h("dl", { class: "facts" });
  const body = h("tbody", {});
  const table = h("div", { class: "scroll stack card flush", tabindex: "0", role: "region", "aria-label": "Runs" },
    h("table", {},
      h("thead", {}, h("tr", {}, ["Run", "State", "Rounds"].map((name) => h("th", { scope: "col" }, name)), h("th", { scope: "col" }, "Message"))),
      body));
  const empty = h("div", { class: "card empty", hidden: true },
    h("h2", {}, "No run yet"),
    h("p", {}, "Hand in a plan, a file like ", h("code", {}, "federation.toml"), ". It begins as soon as enough sites are connected."),
    h("p", {}, "In a terminal: ", h("code", {}, "consortia run submit federation.toml --dir DIR")),
    h("button", { type: "button", class: "primary", onclick: submit }, "Submit a plan"));
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Runs"), h("button", { type: "button", class: "primary", onclick: submit }, "Submit a plan")),
    facts, table, empty);

  /** @type {any} */
  let status = null;
  const draw = () => {
    const all = [...runs.values()].reverse();
    rows(body, all, (run) => run.run, row);
    table.hidden = all.length === 0;
    empty.hidden = all.length > 0;
    const counts = (/** @type {string} */ state) => all.filter((run) => run.state === state).length;
    const fact = (/** @type {string} */ name, /** @type {string | number} */ value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
    fill(facts,
      fact("Sites connected", status?.sites_connected ?? "–"),
      fact("Running", counts("running")), fact("In the queue", counts("queued")),
      fact("Stored", bytes(status?.storage_bytes)),
      fact("Server up", status ? duration(status.now - status.started) : "–"));
  };
  const refresh = async () => {
    try {
      const [list, now] = await Promise.all([get("runs", signal), get("status", signal)]);
      status = now;
      // The server tells the newest first; the map keeps the newest last.
      const older = list.reverse();
      runs.clear();
      for (const run of older) runs.set(run.run, run);
      draw();
    } catch (error) {
      fail(error);
    }
  };
  refresh();
  const timer = setInterval(refresh, 15000);
  return {
    heard: (name, data) => {
      if (name === "sites" && status) status.sites_connected = data.connected;
      if (status) draw();
    },
    back: refresh,
    close: () => clearInterval(timer),
  };
}

/** Asks for a plan's file and hands it in. */
function submit() {
  const text = h("textarea", { id: "plan", rows: "12", spellcheck: "false", placeholder: "name = \"heart\"\nrounds = 20\n…" });
  const file = h("input", { id: "file", type: "file", accept: ".toml,text/plain" });
  file.addEventListener("change", async () => { if (file.files[0]) text.value = await file.files[0].text(); });
  const seed = h("input", { id: "seed", inputmode: "numeric", autocomplete: "off", pattern: "[0-9]{1,15}" });
  const failed = h("p", { class: "error", role: "alert" });
  const form = h("form", { id: "submit-form" },
    h("label", { for: "file" }, "The plan's file"), file,
    h("label", { for: "plan" }, "Or its text"), text,
    h("label", { for: "seed" }, "Seed ", h("span", { class: "muted" }, "(optional; makes it a seeded run, which may not claim privacy)")), seed,
    failed);
  const button = h("button", { type: "submit", class: "primary", form: "submit-form" }, "Submit");
  const dialog = open("Submit a plan", [form], [button]);
  form.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const { run } = await post("runs", { plan_toml: text.value, seed: seed.value ? Number(seed.value) : null });
      dialog.close();
      say("The plan is in the queue.");
      location.hash = `#/runs/${run}`;
    } catch (error) {
      fill(failed, /** @type {Error} */ (error).message);
      button.disabled = false;
    }
  });
}
