// A table of numbers as shades: a row per token, a column per layer; pointing or walking tells a cell's numbers.

import { h, visible } from "./dom.js";

/** `values[row][column]`; `scale` makes −1 to 1 of one; `tell(row, column)` is its sentence; `texts` stand in the cells. */
export function grid({ title, note, rows, marked, values, texts, scale, tell, wide }) {
  const readout = h("p", { class: "readout small", "aria-live": "polite" }, note);
  const columns = values[0].length;
  const cells = values.map((row, i) => row.map((value, j) => cell(value, i, j)));

  function cell(value, i, j) {
    const strength = scale(value);
    const made = h("td", { class: strength < 0 ? "cell less" : "cell", tabindex: i || j ? -1 : 0, title: tell(i, j) }, texts ? visible(texts[i][j]) : h("span", { class: "unseen" }, tell(i, j)));
    made.style.setProperty("--strength", `${Math.round(100 * Math.min(1, Math.abs(strength)))}%`);
    if (Math.abs(strength) > 0.6) made.classList.add("strong");
    const show = () => { readout.textContent = tell(i, j); };
    made.addEventListener("pointerenter", show);
    made.addEventListener("focus", show);
    made.addEventListener("keydown", event => {
      const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [0, 0];
      const next = cells[i + down]?.[j + right];
      if (!next || next === made) return;
      event.preventDefault();
      made.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
    return made;
  }

  const every = columns > 12 ? 5 : 1; // layers that have their number written
  const head = Array.from({ length: columns }, (_, j) => h("th", { scope: "col" }, j % every === 0 ? String(j) : h("span", { class: "unseen" }, String(j))));
  return h("figure", { class: wide ? "map wide" : "map" }, h("figcaption", {}, h("h3", {}, title), readout),
    h("div", { class: "scroll" }, h("table", { class: `heat ${texts ? "lens" : ""} ${columns <= 6 ? "few" : ""}` },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "layer"), head)),
      h("tbody", {}, rows.map((token, i) => h("tr", {}, h("th", { scope: "row", class: marked(i) ? "mono subject" : "mono" }, visible(token)), cells[i]))))));
}
