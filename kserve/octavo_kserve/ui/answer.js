// One question and its answer on the page: text as it grows, code set apart, figures and buttons below.

import { button, copyFrom, element } from "./dom.js";

/** Text and code in turn: a line that begins with ``` opens or closes a piece of code. */
export function split(text) {
  const pieces = [];
  let code = false;
  let lines = [];
  const flush = () => {
    const content = lines.join("\n").replace(/^\n+|\s+$/g, "");
    if (content) pieces.push({ code, content });
    lines = [];
  };
  for (const line of text.split("\n")) {
    if (line.trimStart().startsWith("```")) {
      flush();
      code = !code;
    } else {
      lines.push(line);
    }
  }
  flush();
  return pieces;
}

const FORMAT = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const ENDS = { length: "cut at max tokens", cancelled: "stopped", error: "failed" };

function figures({ tokens, promptTokens, cachedTokens, firstTokenMs, rate, reason }) {
  const cached = cachedTokens ? `, ${cachedTokens} cached` : "";
  return [
    rate && `${FORMAT.format(rate)} tokens/s`,
    firstTokenMs !== null && `first token ${Math.round(firstTokenMs)} ms`,
    tokens > 0 && `${tokens} token${tokens === 1 ? "" : "s"}`,
    promptTokens > 0 && `prompt ${promptTokens}${cached}`,
    ENDS[reason],
  ].filter(Boolean);
}

/** Owns the elements of one pair; whoever makes it puts `node` where it belongs. */
export class Answer {
  constructor(question, model) {
    this.author = element("h3");
    this.thoughts = element("p");
    this.reasoning = element("details", { class: "reasoning" }, element("summary", {}, "Reasoning"), this.thoughts);
    this.text = element("div", { class: "text" });
    this.figures = element("p", { class: "figures" });
    this.actions = element("p", { class: "actions" });
    this.node = element("article", { class: "pair" },
      element("div", { class: "question" }, element("h3", { class: "hidden" }, "You"), question),
      element("div", { class: "answer" }, this.author, this.reasoning, this.text, this.figures, this.actions));
    this.wait(model);
  }

  /** `model` is asked, and nothing has come yet. */
  wait(model) {
    this.author.textContent = model;
    // Readers of the screen wait for the end, instead of hearing every token.
    this.node.setAttribute("aria-busy", "true");
    this.text.replaceChildren(element("span", { class: "thinking", "aria-label": "waiting for the first token" }));
    this.reasoning.hidden = true;
    this.figures.replaceChildren();
    this.actions.replaceChildren();
  }

  show(progress) {
    this.thoughts.textContent = progress.reasoning?.trim() ?? "";
    this.reasoning.hidden = !this.thoughts.textContent;
    split(progress.text).forEach((piece, i) => this.#showPiece(i, piece));
    this.figures.replaceChildren(...figures(progress).map((text) => element("span", {}, text)));
  }

  /** Text only grows, so all pieces but the last are as they were. */
  #showPiece(i, { code, content }) {
    const tag = code ? "PRE" : "P";
    let node = this.text.children[i];
    if (node?.tagName !== tag) {
      const made = element(tag, code ? { tabindex: "0", "aria-label": "Code" } : {});
      if (node) node.replaceWith(made);
      else this.text.append(made);
      node = made;
    }
    if (node.textContent !== content) node.textContent = content;
  }

  /** The answer has ended, well or not. */
  end(progress, error, again) {
    this.node.setAttribute("aria-busy", "false");
    this.text.querySelector(".thinking")?.remove();
    if (!progress.text && !error) this.text.replaceChildren(element("p", { class: "quiet" }, "(no text)"));
    if (error) {
      const advice = element("span", { class: "advice" }, error.advice ?? "");
      this.text.append(element("p", { class: "error", role: "alert" }, error.message, " ", advice));
    }
    const copy = button("Copy", "plain", () => copyFrom(copy, () => progress.text));
    const retry = button(error ? "Try again" : "Regenerate", "plain again", again);
    this.actions.replaceChildren(...(progress.text ? [copy] : []), retry);
  }
}
