// What the server says of itself: whether it is ready, and which models it has.

import { ask, isLocked, ServerError } from "./api.js";

/** The models as /v1/models lists them; null while a key is missing. */
export async function readModels() {
  try {
    return (await (await ask("v1/models")).json()).data;
  } catch (error) {
    if (error instanceof ServerError && error.status === 401) return null;
    throw error;
  }
}

/** The status of a probe; 0 while nobody answers. */
async function probe(path) {
  try {
    return (await ask(path)).status;
  } catch (error) {
    return error instanceof ServerError ? error.status : 0;
  }
}

/** One of: ready, loading, draining, not ready, not alive, unreachable. */
export async function readState() {
  const ready = await probe("v2/health/ready");
  if (ready === 200) return "ready";
  if (ready === 0) return "unreachable";
  if ((await probe("v2/health/live")) !== 200) return "not alive";
  if (isLocked()) return "not ready";
  // The models themselves tell loading from draining: those of a server on its way out stay warm.
  const models = await readModels().catch(() => null);
  if (!models) return "not ready";
  return models.every((model) => model.ready) ? "draining" : "loading";
}
