// Elements by description, numbers as people read them, and the line that a screen reader speaks.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

/** h("p", {class: "quiet"}, "text", other) is an element; h(…, {onclick: f}) listens. */
export const h = (name, properties = {}, ...children) => filled(document.createElement(name), properties, children);

/** The same for SVG. */
export const svg = (name, properties = {}, ...children) => filled(document.createElementNS(SVG, name), properties, children);

export const at = id => document.getElementById(id);

/** 0.0432 -> "4.3%"; what is nearly nothing or nearly all is not rounded to it. */
export function percent(p) {
  if (p === null || p === undefined) return "–";
  const points = 100 * p;
  if (points > 0 && points < 0.1) return "<0.1%";
  if (points < 100 && points > 99.9) return ">99.9%";
  return `${points.toFixed(points === 0 || points === 100 ? 0 : 1)}%`;
}

/** An interval {value, low, high} of a share: "94.0% [83.8, 97.9]". */
export function shareOf(interval) {
  if (!interval) return "–";
  return `${percent(interval.value)} [${(100 * interval.low).toFixed(1)}, ${(100 * interval.high).toFixed(1)}]`;
}

/** Three significant digits: 0.01234 -> "0.0123", 12345 -> "12,345". */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

/** 83 -> "1:23". */
export const clock = seconds => `${Math.floor(seconds / 60)}:${String(Math.round(seconds) % 60).padStart(2, "0")}`;

/** A text with what cannot be seen written out. */
export function visible(text) {
  if (text === " ") return "␣";
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥");
}

/** A labelled control. */
export const field = (label, control) => h("label", { class: "field" }, label, control);

/** Say a sentence to those who do not see the page. */
export function announce(sentence) {
  at("said").textContent = sentence;
}

/** A horizontal bar of a share, with its number beside it. */
export function bar(share, kind = "") {
  const fill = h("i");
  fill.style.width = `${100 * Math.min(1, Math.max(0, share ?? 0))}%`;
  return h("span", { class: `bar ${kind}`, "aria-hidden": "true" }, fill);
}

/** Call `work` once `milliseconds` have passed without another call. */
export function settled(work, milliseconds) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), milliseconds);
  };
}
