// Light or dark: the system's choice until the button is used, then what was chosen, remembered by the browser.
// No module, and in the head: the first paint already has the right colours.
(() => {
  const root = document.documentElement;
  const NAME = "octavo-theme";
  // Storage may be forbidden; the choice then lasts as long as the page.
  const store = (work) => { try { return work(localStorage); } catch { return null; } };

  const show = (theme) => {
    if (theme) root.dataset.theme = theme;
  };
  show(store((storage) => storage.getItem(NAME)));

  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      const next = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
      show(next);
      store((storage) => storage.setItem(NAME, next));
    });
  });
})();
