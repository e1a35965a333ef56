// Work that is done again and again while somebody looks at the page, and not while its tab is hidden.

/** Runs `work` now and `intervalMs` after each end of it; a tab that is shown again does not wait for its turn. */
export function poll(intervalMs, work) {
  let timer = null;
  let running = false;
  async function run() {
    clearTimeout(timer);
    if (running || document.hidden) return;
    running = true;
    try {
      await work();
    } finally {
      running = false;
      timer = setTimeout(run, intervalMs);
    }
  }
  document.addEventListener("visibilitychange", run);
  run();
}
