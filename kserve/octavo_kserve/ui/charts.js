// A small line chart over the last seconds, in SVG. Knows curves of {time, value, joined}, not what they mean.

import { element, svg } from "./dom.js";

const HEIGHT = 62;
const EDGE = { left: 32, right: 4, top: 6, bottom: 5 };
const GRID_S = 30;
// Half of each is a good label too.
const STEPS = [1, 2, 4, 6, 10];

/** The least round number that is at least `value`. */
export function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * STEPS.find((step) => step * power >= value * 0.999999);
}

export class Chart {
  #curves = [];
  #now = 0;
  #hover = null;

  /** `series` are [name, colour class]; `format` writes a value in `unit`; the axis reaches `leastTop` at least. */
  constructor({ title, unit, series, format, leastTop, spanS }) {
    Object.assign(this, { title, unit, series, format, leastTop, spanS });
    this.values = series.map(() => element("span", { class: "value" }, "–"));
    const legend = series.map(([name, color], i) =>
      element("span", { class: `series ${color}` }, name ? `${name} ` : "", this.values[i]));
    this.when = element("span", { class: "when" });
    this.plot = svg("svg", { class: "plot", role: "img", height: HEIGHT });
    const name = [element("span", { class: "title" }, title), element("span", { class: "unit" }, unit)];
    this.node = element("figure", { class: "chart" },
      element("figcaption", {}, ...name, this.when, ...legend), this.plot);
    this.plot.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.plot.addEventListener("pointerleave", () => this.#point(null));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  update(curves, now) {
    this.#curves = curves;
    this.#now = now;
    this.draw();
  }

  #point(x) {
    this.#hover = x;
    this.draw();
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width) return;
    const highest = Math.max(this.leastTop, ...this.#curves.flat().map((point) => point.value));
    const scale = {
      top: roundUp(highest),
      width,
      x: (time) => width - EDGE.right - ((this.#now - time) / this.spanS) * (width - EDGE.left - EDGE.right),
      y: (value) => HEIGHT - EDGE.bottom - (value / scale.top) * (HEIGHT - EDGE.top - EDGE.bottom),
    };
    const curves = this.#curves.flatMap((curve, i) => this.#line(curve, this.series[i][1], scale, i === 0));
    this.plot.replaceChildren(...this.#grid(scale), ...curves, ...this.#readOut(scale));
  }

  #grid({ top, width, x, y }) {
    const nodes = [];
    for (let ago = 0; ago <= this.spanS; ago += GRID_S) {
      const at = x(this.#now - ago);
      nodes.push(svg("line", { class: "grid faint", x1: at, x2: at, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
    }
    for (const value of [0, top / 2, top]) {
      const at = y(value);
      nodes.push(svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at }));
      nodes.push(svg("text", { class: "tick", x: EDGE.left - 6, y: at + 3.5 }, this.format(value)));
    }
    return nodes;
  }

  #line(curve, color, { x, y }, filled) {
    const runs = [];
    for (const point of curve.filter((each) => each.time >= this.#now - this.spanS)) {
      if (!point.joined || !runs.length) runs.push([]);
      runs.at(-1).push(`${x(point.time).toFixed(1)},${y(point.value).toFixed(1)}`);
    }
    return runs.flatMap((run) => {
      // A run of one point is drawn by its round ends.
      const line = svg("path", { class: `line ${color}`, d: `M${run.join("L")}${run.length > 1 ? "" : "h0"}` });
      if (!filled || run.length < 2) return [line];
      const [from, to] = [run[0], run.at(-1)].map((pair) => pair.split(",")[0]);
      return [svg("path", { class: `area ${color}`, d: `M${from},${y(0)}L${run.join("L")}L${to},${y(0)}Z` }), line];
    });
  }

  /** The figures in the head: of now, or of where the pointer is, with a line and dots there. */
  #readOut({ x, y }) {
    const distance = (point) => Math.abs(x(point.time) - this.#hover);
    const nearest = (curve) => curve.reduce((best, point) => (distance(point) < distance(best) ? point : best));
    const points = this.series.map((_, i) => {
      const curve = this.#curves[i] ?? [];
      return this.#hover === null || !curve.length ? curve.at(-1) : nearest(curve);
    });
    const texts = points.map((point) => (point ? this.format(point.value) : "–"));
    this.values.forEach((node, i) => { node.textContent = texts[i]; });
    const said = this.series.map(([name], i) => `${name} ${texts[i]}`.trim()).join(", ");
    this.plot.setAttribute("aria-label", `${this.title}: ${said} ${this.unit}`);
    const shown = this.#hover !== null && points.find(Boolean);
    this.when.textContent = shown ? `${Math.max(0, Math.round(this.#now - shown.time))} s ago` : "";
    if (!shown) return [];
    const at = x(shown.time);
    const line = svg("line", { class: "cursor", x1: at, x2: at, y1: EDGE.top, y2: HEIGHT - EDGE.bottom });
    const dots = points.map((point, i) =>
      point && svg("circle", { class: `dot ${this.series[i][1]}`, cx: x(point.time), cy: y(point.value), r: 3 }));
    return [line, ...dots.filter(Boolean)];
  }
}
