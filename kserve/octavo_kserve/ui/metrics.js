// The page /metrics, understood: Prometheus' text, one model's figures of it, and what they say over a time.

const LINE = /^([\w:]+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = /\\(.)/g;

const number = (text) => ({ "+Inf": Infinity, "-Inf": -Infinity })[text] ?? Number(text);
const unescape = (text) => text.replace(ESCAPED, (_, letter) => (letter === "n" ? "\n" : letter));

/** The samples {name, labels, value}, without those of the process, which nobody looks at here. */
export function* parse(text) {
  for (const line of text.split("\n")) {
    if (!line.startsWith("vllm:") && !line.startsWith("octavo:")) continue;
    const found = LINE.exec(line);
    if (!found) continue;
    const [, name, inner = "", value] = found;
    const labels = {};
    for (const [, label, shown] of inner.matchAll(LABEL)) labels[label] = unescape(shown);
    yield { name, labels, value: number(value) };
  }
}

const FIELDS = {
  "vllm:num_requests_running": "running",
  "vllm:num_requests_waiting": "waiting",
  "vllm:kv_cache_usage_perc": "kvCache",
  "vllm:prompt_tokens_total": "prompt",
  "vllm:generation_tokens_total": "generated",
  "vllm:prefix_cache_queries_total": "queries",
  "vllm:prefix_cache_hits_total": "hits",
  "vllm:num_preemptions_total": "preemptions",
  "octavo:request_finished_total": "finished",
};
const FIRST_TOKEN = "vllm:time_to_first_token_seconds_bucket";

/** Which models have figures: when that changes, a model has come or gone. */
export const modelNames = (text) => text.match(/^vllm:num_requests_running\{[^\n]*\}/gm)?.join() ?? "";

/** One model's figures at `time`, in seconds; null if the page has none of it. Series of several labels are summed. */
export function readSnapshot(text, model, time) {
  const snapshot = { time, firstToken: new Map() };
  for (const { name, labels, value } of parse(text)) {
    if (labels.model_name !== model) continue;
    const field = FIELDS[name];
    if (field) snapshot[field] = (snapshot[field] ?? 0) + value;
    else if (name === FIRST_TOKEN) snapshot.firstToken.set(number(labels.le), value);
  }
  snapshot.kvCachePercent = 100 * snapshot.kvCache;
  return "running" in snapshot ? snapshot : null;
}

/** How much a counter went up; one that fell was begun anew, by a server that was. */
const increase = (before, after) => (after >= before ? after - before : after);

/** The snapshots of the last `spanS` seconds. A pause of more than `gapS` leaves a gap in the curves. */
export class History {
  #snapshots = [];

  constructor(spanS, gapS) {
    Object.assign(this, { spanS, gapS });
  }

  add(snapshot) {
    this.#snapshots.push(snapshot);
    // One older than the span is kept, so that curves reach its edge.
    while (this.#snapshots.length > 2 && this.#snapshots[1].time < snapshot.time - this.spanS) this.#snapshots.shift();
  }

  clear() {
    this.#snapshots = [];
  }

  #curve(value) {
    return this.#snapshots.map((after, i) => {
      const before = this.#snapshots[i - 1];
      const joined = Boolean(before) && after.time - before.time <= this.gapS;
      return { time: after.time, value: value(after, joined ? before : null), joined };
    });
  }

  /** A gauge: {time, value, joined}, the last telling whether a line leads here from the point before. */
  gauge(field) {
    return this.#curve((after) => after[field]);
  }

  /** A counter, as what it went up by in a second. */
  rate(field) {
    const perSecond = (after, before) => increase(before[field], after[field]) / (after.time - before.time);
    return this.#curve((after, before) => (before ? perSecond(after, before) : null)).filter((p) => p.value !== null);
  }

  /** How much a counter went up in all. */
  total(field) {
    let sum = 0;
    this.#snapshots.forEach((after, i) => { if (i) sum += increase(this.#snapshots[i - 1][field], after[field]); });
    return sum;
  }

  /** A quantile of the times to the first token, in seconds, interpolated within its bucket; null without requests. */
  firstToken(q) {
    const [oldest, newest] = [this.#snapshots[0], this.#snapshots.at(-1)];
    if (!newest) return null;
    const bounds = [...newest.firstToken.keys()].sort((a, b) => a - b);
    const counts = bounds.map((le) => increase(oldest.firstToken.get(le) ?? 0, newest.firstToken.get(le)));
    const wanted = q * counts.at(-1);
    if (!(wanted > 0)) return null;
    const i = counts.findIndex((count) => count >= wanted);
    const [low, below] = i ? [bounds[i - 1], counts[i - 1]] : [0, 0];
    // Beyond the last bound nothing is known but that.
    if (bounds[i] === Infinity) return low;
    return low + ((bounds[i] - low) * (wanted - below)) / (counts[i] - below);
  }
}
