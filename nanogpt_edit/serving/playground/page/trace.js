// Trace: where in the network an answer is recalled, and what every layer would say.

import { fill, write } from "./address.js";
import { examples } from "./ask.js";
import { announce, field, h, percent, visible } from "./dom.js";
import { grid } from "./heatmap.js";
import { events } from "./server.js";

const SITES = {
  resid_post: ["The state itself", "one token’s state at one layer is set back to what it was in the clean run"],
  mlp_out: ["What the MLP adds", "its output is set back, over a window of layers"],
  attn_out: ["What attention adds", "its output is set back, over a window of layers"],
};

export function makeTrace(place, house, given) {
  const results = h("div", { class: "traces" });
  const working = h("p", { class: "quiet", role: "status" });
  const form = h("form", { "aria-label": "Trace" },
    examples(house.about.examples.trace, example => {
      for (const name of ["prompt", "subject"]) form.elements[name].value = example[name];
      form.elements.answer.value = example.target_true;
      write("trace", form);
    }),
    field("Prompt: text that ends right before the answer", h("input", { name: "prompt", required: true, autocomplete: "off" })),
    h("div", { class: "grid tight" },
      field("Model", h("select", { name: "model" })),
      field("Subject", h("input", { name: "subject", required: true, autocomplete: "off" })),
      field("Answer to follow (empty: what the model says)", h("input", { name: "answer", autocomplete: "off" })),
      field("draws of the noise", h("input", { name: "draws", type: "number", min: 1, max: 32, value: 8 }))),
    h("div", { class: "row middle" }, h("button", { class: "first" }, "Trace"), working));
  place.append(h("h2", {}, "Trace"), h("p", { class: "lead" },
    "The subject’s tokens are drowned in noise, and one state at a time is set back. Where that brings the answer back, the fact is recalled. Point at a cell, or walk with the arrow keys, for its numbers."),
  h("div", { class: "card" }, form), results);
  const first = house.about.examples.trace[0];
  if (first) fill(form, new URLSearchParams({ prompt: first.prompt, subject: first.subject, answer: first.target_true }));
  fill(form, given);
  offerModels(form, house, given.get("model"));
  house.refresh.push(() => offerModels(form, house));

  let running = null;
  form.addEventListener("submit", async event => {
    event.preventDefault();
    running?.abort();
    const mine = running = new AbortController();
    house.complain(null);
    working.textContent = "tracing …";
    try {
      const { model, prompt, subject, answer, draws } = Object.fromEntries(new FormData(form));
      for await (const told of events("/api/trace", { model, prompt, subject, answer, draws: Number(draws) }, mine.signal)) {
        if (told.event === "done") show(told, model);
      }
    } catch (error) {
      if (error.name !== "AbortError") house.complain(error);
    } finally {
      if (mine === running) working.textContent = "";
    }
  });

  function show({ trace, lens }, model) {
    const said = `${model}: p(“${visible(trace.target)}”), the answer’s first token, is ${percent(trace.clean_p)}, and ${percent(trace.corrupted_p)} with the subject in noise.`;
    const inSubject = i => i >= trace.subject_first && i <= trace.subject_last;
    const most = Math.max(...Object.values(trace.effect).flat(2).map(Math.abs), 1e-6);
    const points = value => `${Math.abs(value) < 0.0005 ? "0.0" : (100 * value).toFixed(1).replace("-", "−")} points`;
    results.replaceChildren(h("p", { class: "verdict" }, said),
      h("div", { class: "maps" }, Object.entries(trace.effect).map(([site, rows]) => grid({
        title: SITES[site][0], note: SITES[site][1], rows: trace.tokens, marked: inSubject, values: rows, scale: value => value / most,
        tell: (row, layer) => `“${visible(trace.tokens[row])}”, layer ${layer}: brings back ${points(rows[row][layer])}`,
      }))),
      grid({
        title: "Logit lens", note: `what the head would say of each state; shade: its probability`, rows: lens.tokens, marked: inSubject,
        values: lens.p_best, texts: lens.best, scale: value => value, wide: true,
        tell: (row, layer) => `“${visible(lens.tokens[row])}”, layer ${layer}: says “${visible(lens.best[row][layer])}” (${percent(lens.p_best[row][layer])}), “${visible(lens.target)}” has ${percent(lens.p_target[row][layer])}`,
      }));
    announce(said);
  }
  return { form };
}

function offerModels(form, house, wanted) {
  const select = form.elements.model, chosen = wanted || select.value || house.about.examples.edited;
  select.replaceChildren(...house.about.models.map(model => h("option", { value: model.id, selected: model.id === chosen }, model.id)));
}
