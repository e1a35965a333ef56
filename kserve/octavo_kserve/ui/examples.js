// "How to call it": lines to copy, with this server's address and the chosen model's name in them.

import { hasKey, serverUrl } from "./api.js";
import { byId, button, copyFrom } from "./dom.js";

// In a shell's single quotes: a quote would end them.
const shellText = (value) => JSON.stringify(value).replaceAll("'", "\\u0027");
const shellJson = (body) => {
  const lines = Object.entries(body).map(([name, value]) => `    "${name}": ${shellText(value)}`);
  return `'{\n${lines.join(",\n")}\n  }'`;
};
// The key itself is never shown.
const header = () => (hasKey() ? ' \\\n  -H "Authorization: Bearer $OCTAVO_API_KEY"' : "");
const messages = [{ role: "user", content: "Hello" }];
const ranked = { query: "The sea", documents: ["A ship", "A desk"] };

const curl = ({ name, chats, kind }) => {
  if (kind) {
    const asked = kind === "vectors" ? { input: "The sea" } : ranked;
    const route = kind === "vectors" ? "embeddings" : "rerank";
    return `curl ${serverUrl()}/v1/${route}${header()} \\\n  -d ${shellJson({ model: name, ...asked })}`;
  }
  const body = { model: name, ...(chats ? { messages } : { prompt: "Hello" }), stream: true };
  return `curl -N ${serverUrl()}/v1/${chats ? "chat/" : ""}completions${header()} \\\n  -d ${shellJson(body)}`;
};

const client = () => [
  `${hasKey() ? "import os\n\n" : ""}from openai import OpenAI`,
  "",
  `client = OpenAI(base_url="${serverUrl()}/v1", api_key=${hasKey() ? 'os.environ["OCTAVO_API_KEY"]' : '"none"'})`,
];

const pythonOf = {
  vectors: (name) => [
    `answer = client.embeddings.create(model=${JSON.stringify(name)}, input="The sea")`,
    "print(answer.data[0].embedding)",
  ],
  scores: (name) => [
    `body = ${JSON.stringify({ model: name, ...ranked })}`,
    'print(client.post("/rerank", cast_to=object, body=body))',
  ],
};

const python = ({ name, chats, kind }) => kind ? [...client(), ...pythonOf[kind](name)].join("\n") : [
  ...client(),
  chats ? "answer = client.chat.completions.create(" : "answer = client.completions.create(",
  `    model=${JSON.stringify(name)},`,
  chats ? '    messages=[{"role": "user", "content": "Hello"}],' : '    prompt="Hello",',
  ")",
  `print(answer.choices[0].${chats ? "message.content" : "text"})`,
].join("\n");

const v2 = ({ name, chats, kind }) => {
  if (kind === "scores") {
    return `curl ${serverUrl()}/v2/rerank${header()} \\\n  -d ${shellJson({ model: name, ...ranked })}`;
  }
  if (kind) {
    const asked = { text_input: "", embedding_request: JSON.stringify({ input: "The sea" }) };
    return `curl ${serverUrl()}/v2/models/${encodeURIComponent(name)}/generate${header()} \\\n  -d ${shellJson(asked)}`;
  }
  const what = chats ? { text_input: "", messages: JSON.stringify(messages) } : { text_input: "Hello" };
  const body = { ...what, stream: true, exclude_input_in_output: true, max_tokens: 64 };
  const route = `v2/models/${encodeURIComponent(name)}/generate_stream`;
  return `curl -N ${serverUrl()}/${route}${header()} \\\n  -d ${shellJson(body)}`;
};

const LANGUAGES = { curl, Python: python, v2 };

export class Examples {
  #model = null;
  #language = "curl";

  constructor() {
    const tabs = Object.keys(LANGUAGES).map((language) => button(language, "tab", () => this.#choose(language)));
    byId("call-tabs").append(...tabs);
    const copy = byId("call-copy");
    copy.addEventListener("click", () => copyFrom(copy, () => byId("call-code").textContent));
    this.#choose(this.#language);
  }

  use(model) {
    this.#model = model;
    this.#show();
  }

  #choose(language) {
    this.#language = language;
    for (const tab of byId("call-tabs").children) tab.setAttribute("aria-pressed", tab.textContent === language);
    this.#show();
  }

  #show() {
    if (this.#model) byId("call-code").textContent = LANGUAGES[this.#language](this.#model);
  }
}
