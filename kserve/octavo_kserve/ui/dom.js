// Elements by hand. Text only ever becomes text nodes here: nothing that a model says can become markup.

export const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const element = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export function button(label, className, onClick) {
  const node = element("button", { type: "button", class: className }, label);
  node.addEventListener("click", onClick);
  return node;
}

/** A button that copies what `read` returns, and says so for a moment. */
export async function copyFrom(node, read) {
  const label = node.textContent;
  try {
    await navigator.clipboard.writeText(read());
    node.textContent = "Copied";
  } catch {
    // Browsers have no clipboard for pages that came over plain HTTP from another machine.
    node.textContent = "Select it by hand";
  }
  setTimeout(() => { node.textContent = label; }, 1500);
}
