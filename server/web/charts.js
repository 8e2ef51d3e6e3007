// Curves over rounds: drawn by uPlot for eyes, and the same numbers as a table for everybody.

import { fill, h } from "./dom.js";
import { sentence } from "./format.js";

/** @typedef {{ name: string, values: (number | null)[], color?: number, dash?: number[] }} Series */
/** @typedef {(value: number | null | undefined) => string} Formatter */
/** @typedef {(value: number, step: number) => string} TickFormatter */

/** Colours that are told apart, also by people who see fewer; the style sheet has both themes'. */
const COLORS = 8;
/** Rows of a table that are drawn at most, the newest ones. */
const ROWS = 200;
/** Distances of two lines of a grid in seconds. */
const SECONDS = [...[1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1].flatMap((unit) => [unit, 2 * unit, 5 * unit]), 10, 20, 30, 60, 120, 300, 600, 1200, 1800,
  3600, 7200, 10800, 21600, 43200, ...[1, 10, 100].flatMap((unit) => [86400 * unit, 172800 * unit, 432000 * unit])];

/** The colour that a custom property stands for, in the theme that is shown. @param {string} name */
function color(name) {
  const probe = h("span", {});
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export class Chart {
  /**
   * @param {{ title: string, format: Formatter, tick: TickFormatter, x?: string, zero?: boolean, seconds?: boolean, whole?: boolean, note?: string }} options
   */
  constructor({ title, format, tick, x = "round", zero = false, seconds = false, whole = false, note = "" }) {
    this.title = title;
    this.format = format;
    this.tick = tick;
    this.x = x;
    this.zero = zero;
    this.increments = seconds ? SECONDS : whole ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] : null;
    /** @type {any} */
    this.plot = null;
    /** @type {number[]} */
    this.rounds = [];
    /** @type {Series[]} */
    this.series = [];
    this.signature = "";
    this.canvas = h("div", { class: "plot", role: "img", "aria-label": title });
    this.legend = h("ul", { class: "legend" });
    this.table = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title} as a table` });
    this.details = h("details", { ontoggle: () => this.tabulate() }, h("summary", {}, "As a table"), this.table);
    this.empty = h("p", { class: "muted plot-empty" }, "Nothing yet.");
    this.element = h("figure", { class: "card chart" },
      h("figcaption", {}, h("h3", {}, title), note && h("span", { class: "muted" }, note)),
      this.legend, this.empty, this.canvas, this.details);
    this.resized = new ResizeObserver(() => this.resize());
    this.resized.observe(this.canvas);
    this.themed = () => this.draw(true);
    addEventListener("themechange", this.themed);
  }

  close() {
    this.resized.disconnect();
    removeEventListener("themechange", this.themed);
    this.plot?.destroy();
  }

  /**
   * @param {number[]} rounds
   * @param {Series[]} series those without a value are left out
   */
  show(rounds, series) {
    this.rounds = rounds;
    this.series = series.filter(({ values }) => values.some((value) => value !== null));
    this.draw(false);
  }

  /** @param {boolean} anew */
  draw(anew) {
    const { series, rounds } = this;
    const some = series.length > 0;
    this.empty.hidden = some;
    this.canvas.hidden = !some;
    this.details.hidden = !some;
    const signature = series.map(({ name }) => name).join("|");
    if (anew || signature !== this.signature) {
      this.signature = signature;
      this.plot?.destroy();
      this.plot = null;
    }
    this.describe(rounds.length - 1);
    if (!some) return;
    const data = [rounds, ...series.map(({ values }) => values)];
    if (this.plot) this.plot.setData(data);
    else if (this.canvas.clientWidth > 0) this.plot = new (/** @type {any} */ (window).uPlot)(this.options(), data, this.canvas);
    this.tabulate();
  }

  resize() {
    const width = this.canvas.clientWidth;
    if (width === 0) return;
    if (!this.plot) this.draw(false);
    else if (width !== this.plot.width) this.plot.setSize({ width, height: this.plot.height });
  }

  options() {
    const [ink, grid] = [color("--muted"), color("--border")];
    const font = "12px system-ui, sans-serif";
    const axis = { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1, size: 4 } };
    const least = this.zero ? 0 : null;
    return {
      width: this.canvas.clientWidth,
      height: 200,
      padding: [8, 12, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: {
        x: { time: false, range: (/** @type {any} */ _, /** @type {number} */ min, /** @type {number} */ max) => (min === max ? [min - 1, max + 1] : [min, max]) },
        y: {
          range: (/** @type {any} */ _, /** @type {number} */ min, /** @type {number} */ max) => {
            const pad = max === min ? Math.abs(max) * 0.1 || 1 : (max - min) * 0.08;
            return [least ?? min - pad, max + pad];
          },
        },
      },
      axes: [
        { ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000], space: 48, size: 28, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map(String), label: sentence(this.x), labelFont: font, labelSize: 18, labelGap: 2 },
        {
          ...axis, size: 64, ...(this.increments && { incrs: this.increments }),
          values: (/** @type {any} */ _, /** @type {number[]} */ ticks, /** @type {any} */ _axis, /** @type {any} */ _space, /** @type {number} */ step) => ticks.map((value) => this.tick(value, step)),
        },
      ],
      series: [{}, ...this.series.map((one, index) => ({
        label: one.name,
        stroke: color(`--series-${one.color ?? index % COLORS}`),
        width: 2,
        dash: one.dash ?? (index >= COLORS ? [6, 4] : undefined),
        spanGaps: true,
        points: { show: this.rounds.length < 2 ? true : undefined, size: 5 },
      }))],
      hooks: {
        setCursor: [(/** @type {any} */ plot) => this.describe(plot.cursor.idx ?? this.rounds.length - 1)],
      },
    };
  }

  /** The legend, with the values of the round under the cursor or of the last one. @param {number} at */
  describe(at) {
    const { series, rounds } = this;
    const { format } = this;
    const last = (/** @type {Series} */ one) => one.values.findLast((value, index) => index <= at && value !== null);
    fill(this.legend, series.map((one, index) => h("li", {},
      h("span", { class: "swatch", "data-color": one.color ?? index % COLORS, "data-dash": Boolean(one.dash) || index >= COLORS, "aria-hidden": "true" }),
      h("span", {}, one.name), h("strong", {}, format(last(one))))));
    const said = series.slice(0, 10).map((one) => `${one.name} ${format(last(one))}`).join(", ");
    if (at === rounds.length - 1) this.canvas.setAttribute("aria-label", `${this.title}, ${this.x} ${rounds[at] ?? 0}: ${said}`);
  }

  tabulate() {
    if (!this.details.open) return;
    const { format } = this;
    const from = Math.max(0, this.rounds.length - ROWS);
    const left_out = from > 0 && h("p", { class: "muted" }, `The last ${ROWS} of ${this.rounds.length}.`);
    const lines = this.rounds.slice(from).map((round, index) => h("tr", {},
      h("th", { scope: "row" }, round),
      this.series.map(({ values }) => h("td", { class: "number" }, format(values[from + index])))));
    fill(this.table, left_out, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, this.x), this.series.map(({ name }) => h("th", { scope: "col", class: "number" }, name)))),
      h("tbody", {}, lines.reverse())));
  }
}
