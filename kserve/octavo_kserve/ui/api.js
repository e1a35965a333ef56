// Requests to this server: where it is, the key they carry, errors in one shape, server-sent events.

// From this file's own address, so that a prefix that a gateway adds is kept.
const BASE = new URL("../", import.meta.url);
const KEY = "octavo-key";

// What an error's status would have been, had it come before the first event.
const STATUS = { service_unavailable: 503, deadline_exceeded: 408 };
const ADVICE = {
  0: "Check that it is running; this page goes on by itself when it is back.",
  400: "Change the request, or see Settings.",
  401: "Enter a valid key.",
  404: "Choose another model above.",
  408: "Ask for fewer tokens, or try again.",
  413: "Make the message shorter.",
  422: "Change the request, or see Settings.",
  429: "The server is busy: try again in a moment.",
  500: "Try again; the server's log has the details.",
  503: "Try again when the status above says ready.",
};

/** What went wrong, in the server's own line. `status` 0: nobody answered; `advice` is what to do about it. */
export class ServerError extends Error {
  constructor(status, { message, code, param } = {}) {
    super(message ?? "The server does not answer.");
    Object.assign(this, { status, code, param });
  }

  get advice() {
    if (this.code === "context_length_exceeded") return "Begin a new chat, or lower Max tokens.";
    return ADVICE[this.status] ?? "";
  }
}

// After a 401 nothing is asked until there is a new key: polling would only fill logs.
let locked = false;
export const isLocked = () => locked;
export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
  locked = false;
}

export const serverUrl = () => BASE.href.replace(/\/$/, "");

/** The response, if it is a good one. Throws ServerError, or what `signal` was aborted with. */
export async function request(path, { body, signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, signal, cache: "no-store" };
  let response;
  try {
    response = await fetch(new URL(path, BASE), body ? { ...options, body: JSON.stringify(body) } : options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(0);
  }
  if (response.ok) return response;
  const error = new ServerError(response.status, await readError(response));
  // The answer to a key that was replaced meanwhile tells nothing of the new one.
  if (error.status === 401 && key === sessionStorage.getItem(KEY)) {
    locked = true;
    document.dispatchEvent(new CustomEvent("key-needed", { detail: { refused: Boolean(key) } }));
  }
  throw error;
}

/** A short request of the page's own, that must not wait for a server that hangs. */
export const ask = (path) => request(path, { signal: AbortSignal.timeout(4000) });

async function readError(response) {
  const { error } = await response.json().catch(() => ({}));
  return typeof error === "object" ? error : { message: error ?? `The server answered ${response.status}.` };
}

/** The JSON of each event up to [DONE]. Throws ServerError for an event that tells of one, or if the stream breaks. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (pending + value).split("\n\n");
      pending = parts.pop();
      for (const data of parts.filter((part) => part.startsWith("data: ")).map((part) => part.slice(6))) {
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ServerError(STATUS[event.error.code] ?? 500, event.error);
        yield event;
      }
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
  }
  throw new ServerError(0, { message: "The answer broke off: the server has closed the connection." });
}
