// Privacy: what has been released from each population, and what its budget still allows.

import { get } from "../api.js";
import { Chart } from "../charts.js";
import { fill, h } from "../dom.js";
import { UNITS, delta as power, exact, number, percent, tick } from "../format.js";

export const title = "Privacy";

/** @param {import("../main.js").Stage} stage @returns {import("../main.js").View} */
export function show({ root, signal, fail }) {
  const list = h("div", {});
  const empty = h("div", { class: "card empty", hidden: true },
    h("h2", {}, "No budget yet"),
    h("p", {}, "No run of this server has promised privacy at the server. A plan does so with a table ", h("code", {}, "[privacy.central]"), "; its releases are then paid from a ledger that is shown here."),
    h("p", {}, "In a terminal: ", h("code", {}, "consortia privacy explain federation.toml")));
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Privacy")),
    h("p", { class: "lead" }, "Epsilon of everything released from a population, computed anew from its ledger. A budget is never raised: when it cannot pay for the next release, runs over that population end."),
    list, empty);

  /** @type {Map<string, { chart: Chart, draw: (population: any) => void, element: Element }>} */
  const cards = new Map();
  async function refresh() {
    try {
      const populations = await get("ledger", signal);
      empty.hidden = populations.length > 0;
      for (const population of populations) {
        let card = cards.get(population.population);
        if (!card) {
          card = make(population.population);
          cards.set(population.population, card);
          list.append(card.element);
        }
        card.draw(population);
      }
    } catch (error) {
      fail(error);
    }
  }
  refresh();
  let timer = setInterval(refresh, 15000);
  let due = 0;
  return {
    heard: (name) => {
      if (name !== "run" || due) return;
      due = setTimeout(() => { due = 0; refresh(); }, 2000);
    },
    back: refresh,
    close: () => {
      clearInterval(timer);
      clearTimeout(due);
      for (const { chart } of cards.values()) chart.close();
    },
  };
}

/** @param {string} name */
function make(name) {
  const [amount, facts, warning] = [h("p", { class: "amount" }), h("dl", { class: "facts" }), h("p", { class: "error", hidden: true })];
  const bar = h("meter", { min: "0", "aria-label": `Budget of ${name}` });
  const chart = new Chart({ title: "Epsilon by release", format: exact, tick, x: "release", zero: true });
  const element = h("section", { class: "card population", "aria-label": name },
    h("h2", {}, name), amount, bar, warning, facts, chart.element);
  /** @param {any} population */
  const draw = (population) => {
    const { epsilon, epsilon_max: budget, delta } = population;
    const part = epsilon === null ? 1 : epsilon / budget;
    fill(amount, h("strong", {}, number(epsilon)), ` of ${number(budget)} spent `, h("span", { class: "muted" }, `(${percent(part)}, at delta ${power(delta)})`));
    Object.assign(bar, { max: budget, high: 0.9 * budget, low: 0.75 * budget, optimum: 0, value: epsilon ?? budget });
    warning.hidden = population.secure;
    fill(warning, "INSECURE: noise of a release came from a test's seed and can be taken off again. Nothing is claimed.");
    const fact = (/** @type {string} */ term, /** @type {string} */ value) => h("div", {}, h("dt", {}, term), h("dd", {}, value));
    fill(facts,
      fact("Protects", UNITS[population.unit] ?? population.unit), fact("Releases", number(population.releases, 0)),
      fact("Could not be paid", number(population.refused, 0)), fact("Epsilon (PLD)", number(population.pld)), fact("Epsilon (Rényi)", number(population.rdp)),
      fact("Ledger", `${number(population.records, 0)} records, head ${population.head.slice(0, 12)}`));
    const first = population.releases - population.history.length + 1;
    const numbers = population.history.map((/** @type {any} */ _, /** @type {number} */ index) => first + index);
    chart.show(numbers, [
      { name: "Spent", values: population.history.map((/** @type {any} */ release) => release.epsilon), color: 4 },
      { name: "Budget", values: numbers.map(() => budget), color: 5, dash: [6, 4] },
    ]);
  };
  return { chart, draw, element };
}
