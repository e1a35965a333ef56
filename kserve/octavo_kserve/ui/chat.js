// The conversation: sends, stops, regenerates, and keeps what earlier answers were. One answer at a time.

import { ServerError } from "./api.js";
import { Answer } from "./answer.js";
import { byId } from "./dom.js";
import { generate } from "./generation.js";
import { readSettings } from "./settings.js";

const NEAR_PX = 80;

export class Chat {
  // {question, answer: the text so far, view}
  #pairs = [];
  #abort = null;
  #model = null;

  /** Calls `onRefused` when a model does not write texts at all. */
  constructor(onRefused) {
    this.onRefused = onRefused;
    this.scroll = byId("scroll");
    this.question = byId("question");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send(this.question.value);
    });
    this.question.addEventListener("keydown", (event) => {
      // While an input method composes a word, Enter belongs to it.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      byId("composer").requestSubmit();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("new-chat").addEventListener("click", () => this.clear());
    byId("starters").addEventListener("click", ({ target }) => {
      if (target.tagName === "BUTTON") this.send(target.textContent);
    });
  }

  /** Who answers from now on; `chats` is whether it knows of roles. */
  use(name, chats) {
    this.#model = { name, chats };
    byId("welcome-model").textContent = name;
    byId("welcome-text").textContent = chats
      ? "Every answer streams from this server, and its charts move as you chat."
      : "This model has no chat template: it goes on with your text, as a completion.";
    this.question.placeholder = chats ? `Message ${name}` : `A text for ${name} to go on with`;
  }

  async send(text) {
    if (!text.trim() || this.#abort || !this.#model) return;
    this.question.value = "";
    byId("welcome").hidden = true;
    // Of pairs before it, only the last can be tried again.
    this.#pairs.at(-1)?.view.actions.querySelector(".again")?.remove();
    const pair = { question: text, answer: "", view: new Answer(text, this.#model.name) };
    this.#pairs.push(pair);
    byId("turns").append(pair.view.node);
    this.#follow(true);
    await this.#answer(pair);
  }

  stop() {
    this.#abort?.abort();
  }

  clear() {
    this.stop();
    this.#pairs = [];
    byId("turns").replaceChildren();
    byId("welcome").hidden = false;
    this.question.focus();
  }

  async #answer(pair) {
    const abort = (this.#abort = new AbortController());
    this.#showBusy(true);
    pair.view.wait(this.#model.name);
    pair.answer = "";
    // Pairs without an answer would be two questions in a row, which many templates refuse.
    const pairs = this.#pairs.filter((each) => each !== pair && each.answer);
    const asked = { model: this.#model.name, chats: this.#model.chats, pairs, question: pair.question };
    let last = { text: "", tokens: 0, firstTokenMs: null };
    let failure = null;
    try {
      for await (const progress of generate({ ...asked, settings: readSettings() }, abort.signal)) {
        last = progress;
        pair.answer = progress.text;
        this.#draw(pair.view, progress);
      }
    } catch (error) {
      failure = abort.signal.aborted ? null : error;
      if (abort.signal.aborted) last.reason = "cancelled";
    }
    this.#draw(pair.view, last);
    pair.view.end(last, failure, () => this.#abort || this.#answer(pair));
    this.#follow();
    this.#abort = null;
    this.#showBusy(false);
    byId("announce").textContent = failure ? "" : "The answer is complete.";
    if (failure?.status === 400 && failure.param === "model") this.onRefused();
    if (failure && !(failure instanceof ServerError)) throw failure;
  }

  #draw(view, progress) {
    const near = this.#isNearEnd();
    view.show(progress);
    this.#follow(near);
  }

  #isNearEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroll;
    return scrollHeight - scrollTop - clientHeight < NEAR_PX;
  }

  /** Goes along with the text, unless the reader has scrolled up. */
  #follow(near = this.#isNearEnd()) {
    if (near) this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  #showBusy(busy) {
    const [send, stop] = [byId("send"), byId("stop")];
    const focused = document.activeElement === (busy ? send : stop);
    send.hidden = busy;
    stop.hidden = !busy;
    // A button that vanishes takes the keyboard's place with it.
    if (focused) (busy ? stop : this.question).focus();
    if (busy) byId("announce").textContent = "Answering";
  }
}
