// Asks for the API key when the server wants one. It is kept for this tab, by api.js, and shown nowhere.

import { useKey } from "./api.js";
import { byId } from "./dom.js";

/** Calls `onKey` after each key that was entered. */
export function setUpKey(onKey) {
  const dialog = byId("key-dialog");
  document.addEventListener("key-needed", ({ detail }) => {
    if (detail.refused) byId("key-note").textContent = "The server does not know that key. Try another one.";
    if (!dialog.open) dialog.showModal();
  });
  dialog.querySelector("form").addEventListener("submit", () => {
    useKey(byId("key").value.trim());
    byId("key").value = "";
    onKey();
  });
  // Chromium gives the message its focus back without the caret: what is typed would go nowhere.
  dialog.addEventListener("close", () => byId("question").select());
}
