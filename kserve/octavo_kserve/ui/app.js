// The page as a whole: what the header shows, and who is told when the model or the server's state changes.

import { isLocked } from "./api.js";
import { Chat } from "./chat.js";
import { Compare, comparison } from "./compare.js";
import { byId, element } from "./dom.js";
import { Examples } from "./examples.js";
import { canChat } from "./generation.js";
import { setUpKey } from "./key.js";
import { Live } from "./live.js";
import { poll } from "./poll.js";
import { readModels, readState } from "./server.js";
import { setUpSettings } from "./settings.js";

const INTERVAL_MS = 1000;

const chat = new Chat(() => {
  silent.add(chosen);
  return choose(chosen);
});
const compare = new Compare();
const live = new Live(() => loadModels().catch(() => {}));
const examples = new Examples();
const picker = byId("model");
let models = [];
let state = null;
let chosen = null;
// Models that have refused to write, template or not.
const silent = new Set();

function showState() {
  byId("status").dataset.state = state;
  byId("status").lastElementChild.textContent = state;
  document.title = state === "ready" ? "Octavo" : `${state} – Octavo`;
}

async function choose(name) {
  const model = models.find((each) => each.id === name);
  if (!model) return;
  chosen = name;
  const length = model.max_model_len?.toLocaleString("en");
  byId("context").textContent = length ? `${length} tokens of context` : "";
  // Further names of a model share its figures.
  live.use(model.root);
  const chats = await canChat(name);
  const kind = chats && !silent.has(name) ? null : await comparison(name);
  // Somebody may have chosen again meanwhile.
  if (chosen !== name) return;
  chat.use(name, chats);
  compare.use(name, kind);
  examples.use({ name, chats, kind });
}

async function loadModels() {
  const found = await readModels();
  if (!found) return;
  models = found;
  const options = models.map((model) => element("option", { value: model.id }, model.id));
  picker.replaceChildren(...(options.length ? options : [element("option", { value: "" }, "no model")]));
  picker.disabled = models.length < 2;
  picker.value = models.some((model) => model.id === chosen) ? chosen : picker.options[0].value;
  await choose(picker.value);
}

async function watch() {
  const next = await readState();
  const changed = next !== state;
  state = next;
  if (changed) showState();
  // A server that is back may have other models.
  if ((changed || !models.length) && next !== "unreachable" && !isLocked()) await loadModels().catch(() => {});
}

for (const view of document.querySelectorAll("[data-show]")) {
  view.addEventListener("click", () => {
    document.body.dataset.view = view.dataset.show;
    for (const each of document.querySelectorAll("[data-show]")) each.setAttribute("aria-pressed", each === view);
  });
}
picker.addEventListener("change", () => choose(picker.value));
setUpSettings();
setUpKey(() => loadModels().catch(() => {}));
poll(INTERVAL_MS, watch);
poll(INTERVAL_MS, () => live.poll());
byId("question").focus();
