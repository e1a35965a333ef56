// What the official client for JavaScript sees of a server: node check.mjs URL MODEL KEY prints it as JSON.
// Judges nothing: the test that runs this does.
import OpenAI from "openai";

const [baseURL, model, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const chat = { model, messages: [{ role: "user", content: "Hello 🦊" }], seed: 3, max_tokens: 24 };
const completion = { model, prompt: "The sea", seed: 3, max_tokens: 24 };

// Texts and ends by choice, and the last usage, of any stream.
async function gathered(stream, textOf) {
  const seen = { texts: {}, ends: {}, usage: null, chunks: 0 };
  for await (const chunk of stream) {
    seen.chunks += 1;
    seen.usage = chunk.usage ?? seen.usage;
    for (const choice of chunk.choices) {
      seen.texts[choice.index] = (seen.texts[choice.index] ?? "") + (textOf(choice) ?? "");
      if (choice.finish_reason) (seen.ends[choice.index] ??= []).push(choice.finish_reason);
    }
  }
  return seen;
}

async function refused(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, param: error.param, type: error.type };
  }
}

async function abortedInMidStream() {
  const stream = await client.completions.create({ ...completion, max_tokens: 40_000, stream: true });
  let chunks = 0;
  for await (const chunk of stream) {
    chunks += chunk.choices.length;
    if (chunks === 3) stream.controller.abort();
  }
  return chunks;
}

async function listed() {
  const names = [];
  for await (const each of client.models.list()) names.push(each.id);
  return names;
}

const streamed = { stream: true, stream_options: { include_usage: true } };
const chatText = (choice) => choice.delta.content;
const seen = {
  chat: await client.chat.completions.create(chat),
  chat_stream: await gathered(await client.chat.completions.create({ ...chat, ...streamed }), chatText),
  chat_two: await client.chat.completions.create({ ...chat, n: 2 }),
  chat_two_stream: await gathered(await client.chat.completions.create({ ...chat, n: 2, ...streamed }), chatText),
  chat_logprobs: await client.chat.completions.create({ ...chat, logprobs: true, top_logprobs: 2 }),
  completion: await client.completions.create(completion),
  completion_stream: await gathered(await client.completions.create({ ...completion, ...streamed }), (c) => c.text),
  completion_logprobs: await client.completions.create({ ...completion, logprobs: 2 }),
  models: await listed(),
  model: await client.models.retrieve(model),
  bad_value: await refused(() => client.completions.create({ ...completion, temperature: 9 })),
  bad_value_streamed: await refused(() => client.chat.completions.create({ ...chat, max_tokens: 0, stream: true })),
  unknown_model: await refused(() => client.models.retrieve("nobody")),
  without_key: await refused(() => client.withOptions({ apiKey: "wrong" }).models.list()),
  aborted_after: await abortedInMidStream(),
};
console.log(JSON.stringify(seen));
