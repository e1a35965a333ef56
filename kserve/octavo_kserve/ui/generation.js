// One answer as it is generated: what is asked, the chunks that come, and how fast. Knows no element of the page.

import { events, request, ServerError } from "./api.js";

const QUESTION = [{ role: "user", content: "?" }];

/** Whether the model has a chat template; without one, texts are completed. */
export async function canChat(model) {
  try {
    await request("tokenize", { body: { model, messages: QUESTION } });
  } catch (error) {
    return !(error instanceof ServerError && error.message.includes("no chat template"));
  }
  return true;
}

function ofChat(pairs, question, system) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const pair of pairs) {
    messages.push({ role: "user", content: pair.question }, { role: "assistant", content: pair.answer });
  }
  return { messages: [...messages, { role: "user", content: question }] };
}

const ofText = (pairs, question, system) =>
  ({ prompt: system + pairs.map((pair) => pair.question + pair.answer).join("") + question });

/** How many tokens came each second after the first chunk, which brought `first.tokens` of them. */
const rateSince = (first, tokens, now) =>
  first && tokens > first.tokens ? ((tokens - first.tokens) * 1000) / (now - first.time) : null;

/**
 * Yields {text, reasoning, tokens, promptTokens, cachedTokens, firstTokenMs, rate, reason} whenever there is more of it.
 * Throws ServerError, or an AbortError after `signal`: then the server ends the request by itself.
 */
export async function* generate({ model, chats, pairs, question, settings }, signal) {
  const { system, ...sampling } = settings;
  const what = chats ? ofChat(pairs, question, system) : ofText(pairs, question, system);
  // Counts on every chunk: a chunk may bring several tokens, or one without text.
  const body = {
    model, ...what, ...sampling, stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
  const start = performance.now();
  const response = await request(chats ? "v1/chat/completions" : "v1/completions", { body, signal });
  const progress = { text: "", reasoning: "", tokens: 0, promptTokens: 0, cachedTokens: 0, firstTokenMs: null, rate: null };
  let first = null;
  for await (const { choices: [choice], usage } of events(response)) {
    progress.text += choice?.delta?.content ?? choice?.text ?? "";
    progress.reasoning += choice?.delta?.reasoning_content ?? "";
    progress.reason = choice?.finish_reason ?? progress.reason;
    if (usage && choice) {
      const now = performance.now();
      Object.assign(progress, {
        tokens: usage.completion_tokens,
        promptTokens: usage.prompt_tokens,
        cachedTokens: usage.prompt_tokens_details?.cached_tokens ?? 0,
      });
      if (!first && usage.completion_tokens > 0) {
        first = { time: now, tokens: usage.completion_tokens };
        progress.firstTokenMs = now - start;
      }
      progress.rate = rateSince(first, usage.completion_tokens, now) ?? progress.rate;
    }
    yield progress;
  }
}
