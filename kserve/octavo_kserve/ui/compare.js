// The form for models that write no text: which of several texts goes best with one. And which models these are.

import { request, ServerError } from "./api.js";
import { byId, element } from "./dom.js";

const FORMAT = new Intl.NumberFormat("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const DOES = {
  vectors: "This model makes vectors, and writes no text. Its routes are embeddings, score and rerank.",
  scores: "This model scores pairs of texts, and writes none. Its routes are score and rerank.",
};

/** What the model makes instead of text: "vectors", or "scores" of pairs; null for one that writes. */
export async function comparison(model) {
  try {
    await request("v1/embeddings", { body: { model, input: "?" } });
  } catch (error) {
    return error instanceof ServerError && error.message.includes("scores pairs of texts") ? "scores" : null;
  }
  return "vectors";
}

export class Compare {
  #model = null;

  constructor() {
    this.form = byId("compare");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
  }

  /** Who compares from now on; null puts the conversation back in its place. */
  use(name, kind) {
    if (name !== this.#model) byId("ranking").replaceChildren();
    this.#model = kind && name;
    this.form.hidden = !kind;
    byId("scroll").hidden = byId("composer").hidden = Boolean(kind);
    document.querySelector("[data-show=chat]").textContent = kind ? "Compare" : "Chat";
    if (!kind) return;
    byId("compare-model").textContent = name;
    byId("compare-text").textContent = DOES[kind];
  }

  async send() {
    const model = this.#model;
    const { query, documents } = Object.fromEntries(new FormData(this.form));
    const lines = documents.split("\n").filter((line) => line.trim());
    let rows;
    try {
      const response = await request("v1/rerank", { body: { model, query, documents: lines, truncate_prompt_tokens: -1 } });
      rows = (await response.json()).results.map(({ document, relevance_score: score }) =>
        element("li", {}, element("span", { class: "score" }, FORMAT.format(score)), document.text));
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      rows = [element("li", { class: "error", role: "alert" }, error.message)];
    }
    // Somebody may have chosen another model meanwhile.
    if (model === this.#model) byId("ranking").replaceChildren(...rows);
  }
}
