// One metric over the steps of a stage, as a line; pointing at it tells the value.

import { h, number, svg } from "./dom.js";

const WIDTH = 320, HEIGHT = 120, LEFT = 44, BOTTOM = 18, TOP = 8, RIGHT = 8;

/** `points`: {steps: […], values: […]}. */
export function curve(title, { steps, values }) {
  const low = Math.min(...values), high = Math.max(...values), room = high - low || Math.abs(high) || 1;
  const first = steps[0], last = steps.at(-1);
  const x = step => LEFT + (WIDTH - LEFT - RIGHT) * (last === first ? 0.5 : (step - first) / (last - first));
  const y = value => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / room);
  const told = h("span", { class: "number" }, number(values.at(-1)));
  const dot = svg("circle", { r: 3.5, cx: x(last), cy: y(values.at(-1)), class: "dot" });
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: from ${number(values[0])} to ${number(values.at(-1))} in ${steps.length} points` },
    [low, high].map(value => [
      svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "rule" }),
      svg("text", { x: LEFT - 6, y: y(value) + 3.5, "text-anchor": "end" }, number(value))]),
    [first, last].map((step, i) => svg("text", { x: x(step), y: HEIGHT - 4, "text-anchor": i ? "end" : "start" }, String(step))),
    svg("polyline", { points: steps.map((step, i) => `${x(step).toFixed(1)},${y(values[i]).toFixed(1)}`).join(" "), class: "line" }), dot);
  picture.addEventListener("pointermove", event => {
    const box = picture.getBoundingClientRect(), wanted = (event.clientX - box.left) / box.width * WIDTH;
    const near = steps.reduce((best, step, i) => (Math.abs(x(step) - wanted) < Math.abs(x(steps[best]) - wanted) ? i : best), 0);
    dot.setAttribute("cx", x(steps[near]));
    dot.setAttribute("cy", y(values[near]));
    told.textContent = `step ${steps[near]}: ${number(values[near])}`;
  });
  picture.addEventListener("pointerleave", () => {
    dot.setAttribute("cx", x(last));
    dot.setAttribute("cy", y(values.at(-1)));
    told.textContent = number(values.at(-1));
  });
  return h("figure", { class: "plot" }, h("figcaption", { class: "row middle spread small" }, title, told), picture);
}
