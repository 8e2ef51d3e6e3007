// What a run promises of privacy, what has been spent of it, and the statement of its last model.

import { get } from "../api.js";
import { fill, h, prose } from "../dom.js";
import { UNITS, delta, number } from "../format.js";

/** @param {string} term @param {...any} value */
function fact(term, ...value) {
  return h("div", {}, h("dt", {}, term), h("dd", {}, value));
}

/** @param {any[]} sentences */
function list(sentences) {
  return h("ul", { class: "sentences" }, sentences.map((one) => h("li", {}, prose(one))));
}

/** @param {any} claim */
function claimed({ unit, population, epsilon, epsilon_max, delta: at, releases, mechanism, against, assumes }) {
  const least = [epsilon.rdp, epsilon.pld].filter((value) => typeof value === "number");
  const value = least.length > 0 ? number(Math.min(...least)) : "unbounded";
  return h("div", {},
    h("p", {}, h("strong", {}, `Epsilon ${value} at delta ${delta(at)}`), ` for ${UNITS[unit] ?? unit} of the population ${population}${epsilon_max ? `, of a budget of ${number(epsilon_max)}` : ""}; ${number(releases, 0)} releases.`),
    h("p", {}, prose(mechanism), "."), h("p", {}, "Against ", against, "."),
    assumes.length > 0 && [h("p", {}, "It assumes:"), list(assumes)]);
}

/** @param {any} statement */
function stated({ round, model_sha256, claims, outside, void: nothing }) {
  return [
    h("p", { class: "muted" }, `Of the model of round ${round}, ${model_sha256.slice(0, 12)}.`),
    nothing && h("p", {}, "Nothing is claimed: ", nothing, "."),
    claims.length === 0 && !nothing && h("p", {}, "The server claims nothing of its own."),
    claims.map(claimed),
    h("p", {}, h("strong", {}, "Outside of every claim")), list(outside),
  ].flat();
}

/** The section of a run's page; nothing is shown of a run that promises nothing. */
export class PromiseSection {
  /** @param {string} id of the run @param {AbortSignal} signal */
  constructor(id, signal) {
    this.facts = h("div", {});
    this.text = h("div", { class: "statement" });
    this.statement = h("details", {
      ontoggle: async () => {
        if (!this.statement.open) return;
        try {
          fill(this.text, stated(await get(`runs/${id}/statement`, signal)));
        } catch (error) {
          if (!signal.aborted) fill(this.text, h("p", { class: "error" }, prose(/** @type {Error} */ (error).message)));
        }
      },
    }, h("summary", {}, "Privacy statement of the last model"), this.text);
    this.element = h("section", { hidden: true, "aria-label": "Privacy of this run" }, h("h2", {}, "Privacy"), h("div", { class: "card" }, this.facts, this.statement));
  }

  /** @param {any} run @param {number | null} spent epsilon so far, of the population @param {boolean} released whether there is a model to speak of */
  draw(run, spent, released) {
    this.element.hidden = run.promises.length === 0;
    this.statement.hidden = !released;
    const said = JSON.stringify([run.promises, run.rehearsal, spent]);
    if (this.facts.dataset.said === said) return;
    this.facts.dataset.said = said;
    fill(this.facts, run.promises.map((/** @type {any} */ promise) => h("dl", { class: "facts tight" },
      fact("Protects", UNITS[promise.unit] ?? promise.unit),
      promise.population === null
        ? fact("Epsilon", `at most ${number(promise.epsilon_max)}, as each site accounts for it`)
        : fact(run.rehearsal ? "Epsilon (not claimed: a seeded run)" : "Epsilon", `${number(spent ?? 0)} of ${number(promise.epsilon_max)}`),
      fact("Delta", delta(promise.delta)),
      fact("Noise multiplier", Number(promise.noise_multiplier.toFixed(4))),
      promise.population !== null && fact("Population", h("a", { href: "#/privacy" }, promise.population)))));
  }
}
