// How answers are sampled: the form, and what of it this browser remembers.

import { byId } from "./dom.js";

const NAME = "octavo-settings";
const fields = () => [...byId("settings").querySelectorAll("[name]")];

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(NAME)) ?? {};
  } catch {
    return {};
  }
}

export function setUpSettings() {
  const toggle = byId("toggle-settings");
  const show = (open) => {
    byId("settings").hidden = !open;
    toggle.setAttribute("aria-expanded", open);
  };
  toggle.addEventListener("click", () => show(byId("settings").hidden));
  // A field that is hidden could not show what is wrong with it.
  byId("settings").addEventListener("invalid", () => show(true), true);
  const kept = remembered();
  for (const field of fields()) {
    field.value = kept[field.name] ?? field.value;
    field.addEventListener("change", remember);
  }
}

function remember() {
  const values = Object.fromEntries(fields().map((field) => [field.name, field.value]));
  try {
    localStorage.setItem(NAME, JSON.stringify(values));
  } catch {
    // Storage may be forbidden; they then last as long as the page.
  }
}

/** As the request has them: numbers, without those that are left open. */
export function readSettings() {
  const settings = {};
  for (const { name, value } of fields()) {
    if (name === "system") settings.system = value.trim();
    else if (value !== "") settings[name] = Number(value);
  }
  return settings;
}
