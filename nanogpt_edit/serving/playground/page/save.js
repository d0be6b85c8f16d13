// What was done on the page as one HTML file that shows it without a server.

import { at, h } from "./dom.js";

const POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/** Offer the file for saving. */
export async function savePage() {
  const link = h("a", { href: URL.createObjectURL(new Blob([await asFile()], { type: "text/html" })), download: `nanogpt_edit-${new Date().toISOString().slice(0, 10)}.html` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** The page as it stands: forms as what was given, results as they are, nothing that would ask a server. */
export async function asFile() {
  const style = (await Promise.all([...document.querySelectorAll('link[rel="stylesheet"]')].map(async link => (await fetch(link.href)).text()))).join("\n");
  const page = document.documentElement.cloneNode(true);
  page.classList.add("saved");
  keepValues(page);
  page.querySelectorAll("script, link, noscript, .skip, .tools, [role='tablist'], .examples, input[type='file'], .file, .working, #trouble, #said").forEach(each => each.remove());
  for (const panel of page.querySelectorAll("[role='tabpanel']")) freeze(panel);
  page.querySelector("head").append(h("meta", { "http-equiv": "Content-Security-Policy", content: POLICY }), h("style", {}, style));
  page.querySelector(".brand").append(h("span", { class: "quiet" }, ` · saved ${new Date().toLocaleString("en-GB")}`));
  return `<!doctype html>\n${page.outerHTML}`;
}

/** A clone has the fields as they came, not as they are: write down what they hold. */
function keepValues(page) {
  const here = document.querySelectorAll("input, textarea, select"), there = page.querySelectorAll("input, textarea, select");
  here.forEach((control, i) => {
    if (control.type === "checkbox" || control.type === "radio") there[i].toggleAttribute("checked", control.checked);
    else if (control.tagName === "TEXTAREA") there[i].textContent = control.value;
    else if (control.tagName === "SELECT") [...there[i].options].forEach(option => option.toggleAttribute("selected", option.value === control.value));
    else there[i].setAttribute("value", control.value);
  });
}

/** A part with results stays, open and at rest; one where nothing was done goes. */
function freeze(panel) {
  if (!panel.querySelector(".tokens, .edition, .map, .stage")) return panel.remove();
  panel.hidden = false;
  panel.querySelectorAll("button").forEach(button => button.remove());
  panel.querySelectorAll("input, textarea, select").forEach(control => control.setAttribute("disabled", ""));
  panel.querySelectorAll("a[href^='/']").forEach(link => link.replaceWith(link.textContent));
  panel.removeAttribute("aria-labelledby");
}

/** Where a test looks at what would be saved. */
at("save-page").asFile = asFile;
