// One run: its curves, its sites, what the operator may do with it.

import { get, post } from "../api.js";
import { Chart } from "../charts.js";
import { confirm } from "../dialogs.js";
import { fill, h, prose, rows, say } from "../dom.js";
import { REASONS, STATES, duration, durationTick, exact, figure, number, percent, percentTick, tick } from "../format.js";
import { PromiseSection } from "./promise.js";
import { badge, progress } from "./runs.js";

export const title = "Run";

/** The shortest time between two looks at a run that changes. */
const PAUSE = 1000;
/** Sites whose curves are drawn unless others are chosen. */
const DRAWN = 8;
/** Sites that can be chosen by a button each. */
const CHOICES = 40;
/** States that a run does not leave. */
const OVER = ["stopped", "finished", "failed", "budget_exhausted"];

/** What can be done in which state, and what it means. */
const CONTROLS = [
  { verb: "pause", name: "Pause", states: ["running", "queued"], done: "will pause", danger: false,
    text: "The round that is open ends as usual; then nothing more is asked of the sites until the run is resumed." },
  { verb: "resume", name: "Resume", states: ["paused"], done: "goes on", danger: false,
    text: "The run goes on with its next round." },
  { verb: "stop", name: "Stop", states: ["running", "queued", "paused"], done: "will stop", danger: true,
    text: "The round that is open ends as usual; then the run is over. Its model stays as it is. This cannot be undone." },
  { verb: "stop?now=true", name: "Stop now", states: ["running", "paused", "stopping"], done: "stops", danger: true,
    text: "The round that is open is thrown away, with the answers that have come. Its model stays as it was after the round before. This cannot be undone." },
];

/** @param {Record<string, number>} counts @param {string} who */
function reasons(counts, who) {
  const all = Object.entries(counts);
  if (all.length === 0) return h("span", { class: "muted" }, "none");
  return h("ul", { class: "reasons" }, all.map(([reason, count]) =>
    h("li", {}, h("strong", {}, count), ` ${reason.replaceAll("_", " ")}`, h("div", { class: "muted" }, REASONS[reason] ?? who))));
}

/** The root of a loss that is a mean squared error. @param {any} metrics */
function rmse(metrics) {
  return metrics && metrics.loss >= 0 ? Math.sqrt(metrics.loss) : null;
}

/** Leaves out the columns in which no row says anything. @param {Element} body @param {Element} heads */
function hideEmpty(body, heads) {
  const lines = Array.from(body.children);
  Array.from(heads.children).forEach((head, column) => {
    const says = lines.length === 0 || lines.some((line) => !["", "–", "none"].includes(line.children[column]?.textContent ?? ""));
    for (const line of [...lines, heads]) line.children[column]?.toggleAttribute("hidden", !says);
  });
}

/** @param {any} site */
function row(site) {
  return h("tr", {},
    h("th", { scope: "row" }, site.site),
    h("td", { "data-label": "Connection" }, h("span", { class: "line", "data-state": site.connected ? "live" : "lost" }, h("span", { class: "dot", "aria-hidden": "true" }), site.connected ? "Connected" : "Away")),
    h("td", { class: "number", "data-label": "Answers that count" }, site.accepted ?? "–"),
    h("td", { class: "number", "data-label": `${site.records} accuracy` }, percent(site.test?.accuracy)),
    h("td", { class: "number", "data-label": `${site.records} RMSE` }, site.squared_error ? figure(rmse(site.test)) : "–"),
    h("td", { class: "number", "data-label": `${site.records} loss` }, figure(site.test?.loss)),
    h("td", { "data-label": "Refused" }, site.accepted === null ? "–" : reasons(site.refused, "refused")),
    h("td", { "data-label": "Declined" }, site.accepted === null ? "–" : reasons(site.declined, "declined")));
}

/** @param {import("../main.js").Stage} stage @returns {import("../main.js").View} */
export function show({ root, argument, signal, fail }) {
  const view = new RunView(argument, signal, fail);
  root.append(view.element);
  view.refresh();
  return {
    heard: (name, data) => {
      if (name === "run" && data.run === argument) view.soon(data);
      if (name === "sites") view.soon(null);
    },
    back: () => view.refresh(),
    close: () => view.close(),
  };
}

/** The curves of a run. */
function curves() {
  return {
    accuracy: new Chart({ title: "Accuracy", format: percent, tick: percentTick }),
    rmse: new Chart({ title: "RMSE", format: figure, tick, note: "root of the mean squared error, in the target's unit" }),
    loss: new Chart({ title: "Loss", format: figure, tick }),
    accuracies: new Chart({ title: "Accuracy by site", format: percent, tick: percentTick }),
    rmses: new Chart({ title: "RMSE by site", format: figure, tick }),
    losses: new Chart({ title: "Loss by site", format: figure, tick }),
    epsilon: new Chart({ title: "Epsilon", format: exact, tick, zero: true, note: "of everything released so far" }),
    answers: new Chart({ title: "Sites asked and answered", format: (value) => number(value, 0), tick, zero: true, whole: true }),
    seconds: new Chart({ title: "Time of a round", format: (value) => (value === null || value === undefined ? "–" : duration(value)), tick: durationTick, zero: true, seconds: true }),
  };
}

class RunView {
  /** @param {string} id @param {AbortSignal} signal @param {(error: unknown) => void} fail */
  constructor(id, signal, fail) {
    this.id = id;
    this.signal = signal;
    this.fail = fail;
    this.charts = curves();
    this.promise = new PromiseSection(id, signal);
    /** @type {any} */
    this.run = null;
    /** @type {Map<number, any>} */
    this.lines = new Map();
    /** What sites measured: by kind and site, then round. @type {Map<string, Map<number, any>>} */
    this.reports = new Map();
    /** @type {Set<string> | null} */
    this.chosen = null;
    this.timer = 0;
    this.busy = false;
    this.again = false;
    this.build();
  }

  build() {
    this.name = h("h1", {}, "Run");
    this.state = h("span", {});
    this.bar = h("span", {});
    this.message = h("p", { class: "message" });
    // What it does changes all the time; only its state is read out.
    this.heard = h("p", { class: "heard", role: "status" });
    this.buttons = h("div", { class: "buttons" });
    this.facts = h("p", { class: "muted id" });
    const { charts } = this;
    this.hidden = h("p", { class: "card note", hidden: true }, "This plan keeps metrics at the sites: none are sent, so there are no curves of accuracy and loss but those on the server's own records.");
    this.secret = h("p", { class: "card note", hidden: true }, "This plan draws sites in secret: nothing shows who, or how many, took part, so that its privacy may count on it.");
    this.choices = h("fieldset", { class: "choices", hidden: true }, h("legend", {}, "Sites in the curves"));
    this.sites = h("tbody", {});
    this.nobody = h("p", { class: "muted", hidden: true });
    this.left_out = h("p", { class: "muted lead", hidden: true });
    this.plan = h("pre", { tabindex: "0", "aria-label": "The plan" });
    const heads = ["Site", "Connection", "Answers that count", "Accuracy", "RMSE", "Loss", "Refused", "Declined"];
    this.element = h("div", {},
      h("a", { href: "#/runs", class: "back" }, "All runs"),
      h("div", { class: "head" }, h("div", { class: "title" }, this.name, this.state), this.buttons),
      this.facts, h("div", { class: "status" }, this.bar, this.message), this.heard, this.hidden, this.secret,
      this.promise.element,
      this.curves = h("section", {}, h("h2", {}, "Curves"), this.left_out,
        h("div", { class: "charts" }, charts.accuracy.element, charts.rmse.element, charts.loss.element, charts.epsilon.element, charts.answers.element, charts.seconds.element)),
      this.bySite = h("section", {}, h("h2", {}, "By site"), this.choices, h("div", { class: "charts" }, charts.accuracies.element, charts.rmses.element, charts.losses.element)),
      h("h2", {}, "Sites in this run"),
      this.table = h("div", { class: "scroll stack card flush", tabindex: "0", role: "region", "aria-label": "Sites in this run" },
        h("table", {}, h("thead", {}, this.heads = h("tr", {}, heads.map((name, index) => h("th", { scope: "col", class: index > 1 && index < 6 ? "number" : null }, name)))), this.sites)),
      this.nobody,
      h("details", { class: "card plan" }, h("summary", {}, "The plan"), this.plan));
  }

  close() {
    clearTimeout(this.timer);
    for (const chart of Object.values(this.charts)) chart.close();
  }

  /** Something has changed: what is known is drawn now, the rest is asked for soon. @param {any} run */
  soon(run) {
    if (run && this.run) {
      this.run = { ...this.run, ...run };
      this.drawHead();
    }
    if (this.timer) return;
    this.timer = setTimeout(() => {
      this.timer = 0;
      this.refresh();
    }, PAUSE);
  }

  async refresh() {
    if (this.busy) {
      this.again = true;
      return;
    }
    this.busy = true;
    try {
      // The last line may still get its evaluation, so it is asked for again.
      const from = Math.max(0, ...this.lines.keys()) - 1;
      const query = from > 0 ? `?from=${from}` : "";
      const [run, reports] = await Promise.all([get(`runs/${this.id}${query}`, this.signal), get(`runs/${this.id}/reports${query}`, this.signal)]);
      this.take(run, reports);
      this.draw();
    } catch (error) {
      this.fail(error);
    } finally {
      this.busy = false;
      if (this.again) {
        this.again = false;
        this.soon(null);
      }
    }
  }

  /** @param {any} run @param {any[]} reports */
  take(run, reports) {
    this.run = run;
    for (const line of run.history) this.lines.set(line.round, line);
    for (const report of reports) {
      const key = `${report.kind} ${report.site}`;
      const known = this.reports.get(key) ?? new Map();
      known.set(report.round, report);
      this.reports.set(key, known);
    }
  }

  draw() {
    this.drawHead();
    this.drawCurves();
    this.drawSites();
    const { run } = this;
    const records = run.evaluation_records === "validation" ? "Validation" : "Test";
    const sites = run.sites.map((/** @type {any} */ site) => ({ ...site, squared_error: run.squared_error, records }));
    ["accuracy", "RMSE", "loss"].forEach((name, index) => fill(this.heads.children[3 + index], `${records} ${name}`));
    rows(this.sites, sites, (site) => site.site, row);
    hideEmpty(this.sites, this.heads);
    this.nobody.hidden = run.sites.length > 0;
    this.table.hidden = run.sites.length === 0;
    fill(this.nobody, OVER.includes(run.state) ? "No site took part." : "No site has been seen in this run yet. Invite some under Sites, and see that they are running.");
    const lines = [...this.lines.values()];
    this.promise.draw(run, lines.findLast((line) => line.epsilon !== null)?.epsilon ?? null, lines.some((line) => line.round > 0 && line.released));
    fill(this.plan, this.run.plan_toml);
  }

  drawHead() {
    const { run } = this;
    document.title = `${run.state === "running" ? `${run.rounds_done}/${run.rounds} ` : ""}${run.name} · Consortia`;
    fill(this.name, run.name);
    fill(this.state, badge(run.state));
    fill(this.heard, `${run.name}: ${STATES[run.state] ?? run.state}`);
    fill(this.bar, progress(run));
    fill(this.message, prose(run.message));
    this.message.dataset.state = run.state;
    fill(this.facts, `Run ${run.run}${run.rehearsal ? " · seeded run: its seed is known, so it may not claim privacy" : ""} · ${this.began() ? "model it began with" : "model"} ${run.model_sha256.slice(0, 12) || "none yet"}`);
    const wanted = CONTROLS.filter(({ states }) => states.includes(run.state));
    const said = wanted.map(({ verb }) => verb).join(" ");
    if (this.buttons.dataset.said === said) return;
    const focused = this.buttons.contains(document.activeElement);
    this.buttons.dataset.said = said;
    fill(this.buttons, wanted.map((control) => h("button", { type: "button", class: control.danger ? "danger-quiet" : "", onclick: () => this.ask(control) }, control.name)));
    if (focused) (this.buttons.querySelector("button") ?? document.getElementById("main"))?.focus();
  }

  /** Whether no round has changed the model, as far as it is known. */
  began() {
    const lines = [...this.lines.values()].filter((line) => line.round > 0);
    return lines.length >= this.run.rounds_done && !lines.some((line) => line.released);
  }

  /** @param {typeof CONTROLS[number]} control */
  ask({ verb, name, text, done, danger }) {
    confirm({
      title: `${name}: ${this.run.name}`,
      text: [`Run ${this.run.name} (${this.run.run}) has done ${this.run.rounds_done} of ${this.run.rounds} rounds.`, text],
      action: name,
      danger,
      perform: async () => {
        const run = await post(`runs/${this.id}/${verb}`);
        say(`${this.run.name} ${done}.`);
        this.soon(run);
      },
    });
  }

  drawCurves() {
    const lines = [...this.lines.values()].filter((line) => line.round > 0);
    const rounds = lines.map((line) => line.round);
    const of = (/** @type {(line: any) => any} */ pick) => lines.map((line) => pick(line) ?? null);
    const lines_of = (/** @type {(metrics: any) => any} */ value) => [
      { name: `Sites' ${this.run.evaluation_records} records`, values: of((line) => value(line.sites)), color: 0 },
      { name: "Server's records", values: of((line) => value(line.central)), color: 1 },
      { name: "Training records", values: of((line) => value(line.train)), color: 2, dash: [6, 4] },
    ];
    this.charts.accuracy.show(rounds, lines_of((metrics) => metrics?.accuracy));
    this.charts.rmse.show(rounds, lines_of(rmse));
    this.charts.loss.show(rounds, lines_of((metrics) => metrics?.loss));
    const budget = this.run.promises.find((/** @type {any} */ promise) => promise.population !== null)?.epsilon_max ?? null;
    this.charts.epsilon.show(rounds, [
      { name: "Epsilon", values: of((line) => line.epsilon), color: 4 },
      { name: "Budget", values: of((line) => line.epsilon && budget), color: 5, dash: [6, 4] },
    ]);
    this.charts.epsilon.element.hidden = !lines.some((line) => line.epsilon !== null);
    this.charts.answers.show(rounds, [
      { name: "Answered", values: of((line) => line.answered), color: 0 },
      { name: "Asked", values: of((line) => line.cohort), color: 1, dash: [6, 4] },
    ]);
    // A plan that draws sites in secret shows neither how many took part nor how long they took.
    const shown = lines.length === 0 || lines.some((line) => line.cohort !== null);
    this.charts.answers.element.hidden = !shown;
    this.charts.seconds.element.hidden = !shown;
    this.secret.hidden = shown;
    this.charts.seconds.show(rounds, [{ name: "Time", values: of((line) => line.seconds), color: 3 }]);
    this.curves.hidden = lines.length === 0 && OVER.includes(this.run.state);
    this.left_out.hidden = !(rounds[0] > 1);
    fill(this.left_out, `Rounds ${rounds[0]} to ${rounds.at(-1)} are shown; the ${rounds[0] - 1} rounds before them are left out.`);
    const measured = lines.some((line) => line.train || line.sites);
    this.hidden.hidden = measured || !lines.some((line) => line.released);
    const [some, lossy] = [lines.some((line) => line.sites?.accuracy ?? line.central?.accuracy ?? line.train?.accuracy), lines.some((line) => line.sites ?? line.central ?? line.train)];
    const squared = this.run.squared_error;
    this.charts.accuracy.element.hidden = squared || (lines.length > 0 && !some);
    this.charts.rmse.element.hidden = !squared || (lines.length > 0 && !lossy);
    this.charts.loss.element.hidden = lines.length > 0 && !lossy;
  }

  drawSites() {
    const kind = [...this.reports.keys()].some((key) => key.startsWith("evaluate ")) ? "evaluate" : "train";
    const names = [...this.reports.keys()].filter((key) => key.startsWith(`${kind} `)).map((key) => key.slice(kind.length + 1)).sort();
    this.bySite.hidden = names.length === 0;
    if (names.length === 0) return;
    const chosen = this.chosen ?? new Set(names.slice(0, DRAWN));
    const drawn = names.filter((name) => chosen.has(name));
    // The same rounds as in the other curves.
    const first = Math.min(...this.lines.keys());
    const known = new Set(drawn.flatMap((name) => [...(this.reports.get(`${kind} ${name}`)?.keys() ?? [])]));
    const rounds = [...known].filter((round) => round >= first).sort((a, b) => a - b);
    const lines_of = (/** @type {(metrics: any) => any} */ value) => drawn.map((name) => ({
      name,
      color: names.indexOf(name) % 8,
      dash: names.indexOf(name) >= 8 ? [6, 4] : undefined,
      values: rounds.map((round) => value(this.reports.get(`${kind} ${name}`)?.get(round)) ?? null),
    }));
    this.charts.accuracies.show(rounds, lines_of((metrics) => metrics?.accuracy));
    this.charts.rmses.show(rounds, lines_of(rmse));
    this.charts.losses.show(rounds, lines_of((metrics) => metrics?.loss));
    const accurate = names.some((name) => [...(this.reports.get(`${kind} ${name}`)?.values() ?? [])].some((report) => report.accuracy !== null));
    this.charts.accuracies.element.hidden = !accurate;
    this.charts.rmses.element.hidden = !this.run.squared_error;
    this.offer(names, chosen);
  }

  /** A box for each site. @param {string[]} names @param {Set<string>} chosen */
  offer(names, chosen) {
    this.choices.hidden = names.length < 2;
    if (this.choices.childElementCount - 1 === Math.min(names.length, CHOICES)) return;
    fill(this.choices, h("legend", {}, names.length > CHOICES ? `Sites in the curves (${CHOICES} of ${names.length})` : "Sites in the curves"),
      names.slice(0, CHOICES).map((name) => h("label", {},
        h("input", {
          type: "checkbox", checked: chosen.has(name),
          onchange: (/** @type {any} */ event) => {
            this.chosen ??= new Set(chosen);
            if (event.target.checked) this.chosen.add(name);
            else this.chosen.delete(name);
            this.drawSites();
          },
        }), name)));
  }
}
