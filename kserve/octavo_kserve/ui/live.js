// The live panel: which figures are drawn and summed up, of the model that is chosen.

import { ask, isLocked } from "./api.js";
import { Chart } from "./charts.js";
import { byId, element } from "./dom.js";
import { History, modelNames, readSnapshot } from "./metrics.js";

const SPAN_S = 120;
const GAP_S = 4;

const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3, notation: "compact" });
const plain = (value) => short.format(value);
const duration = (seconds) =>
  seconds === null ? "–" : seconds < 1 ? `${short.format(seconds * 1000)} ms` : `${short.format(seconds)} s`;

const ONE = [["", "first"]];
const CHARTS = [
  { title: "Generation", unit: "tokens/s", series: ONE, leastTop: 10, read: (h) => [h.rate("generated")] },
  { title: "Prompt", unit: "tokens/s", series: ONE, leastTop: 10, read: (h) => [h.rate("prompt")] },
  {
    title: "Requests", unit: "", series: [["running", "first"], ["waiting", "second"]], leastTop: 2,
    read: (h) => [h.gauge("running"), h.gauge("waiting")],
  },
  { title: "KV cache use", unit: "%", series: ONE, leastTop: 1, read: (h) => [h.gauge("kvCachePercent")] },
];

const SUMMARY = [
  ["First token p50", (h) => duration(h.firstToken(0.5))],
  ["First token p95", (h) => duration(h.firstToken(0.95))],
  ["Prefix cache hits", (h) =>
    (h.total("queries") ? `${plain((100 * h.total("hits")) / h.total("queries"))} %` : "–")],
  ["Requests finished", (h) => plain(h.total("finished"))],
  ["Tokens generated", (h) => plain(h.total("generated"))],
  ["Preemptions", (h) => plain(h.total("preemptions"))],
];

export class Live {
  #history = new History(SPAN_S, GAP_S);
  #model = null;
  #names = null;

  /** Calls `onModels` when models have come or gone. */
  constructor(onModels) {
    this.onModels = onModels;
    this.charts = CHARTS.map((spec) => new Chart({ ...spec, format: plain, spanS: SPAN_S }));
    const times = ["2 min ago", "1 min", "now"].map((text) => element("span", {}, text));
    const axis = element("p", { class: "time-axis" }, ...times);
    byId("charts").append(...this.charts.map((chart) => chart.node), axis);
    this.totals = SUMMARY.map(() => element("dd", {}, "–"));
    byId("summary").append(...SUMMARY.map(([name], i) => element("div", {}, element("dt", {}, name), this.totals[i])));
  }

  /** Whose figures are shown from now on. */
  use(model) {
    if (model === this.#model) return;
    this.#model = model;
    this.#history.clear();
  }

  async poll() {
    if (isLocked()) return;
    let note = "no answer from the server";
    try {
      const text = await (await ask("metrics")).text();
      this.#compare(modelNames(text));
      const snapshot = readSnapshot(text, this.#model, Date.now() / 1000);
      if (snapshot) this.#history.add(snapshot);
      note = snapshot ? "last 2 minutes" : "this model keeps no metrics";
    } catch {
      // The curves go on when it is back; until then they move on, and leave a gap.
    }
    byId("live-note").textContent = note;
    this.#show();
  }

  #compare(names) {
    if (this.#names !== null && names !== this.#names) this.onModels();
    this.#names = names;
  }

  #show() {
    const now = Date.now() / 1000;
    this.charts.forEach((chart, i) => chart.update(CHARTS[i].read(this.#history), now));
    this.totals.forEach((node, i) => { node.textContent = SUMMARY[i][1](this.#history); });
  }
}
