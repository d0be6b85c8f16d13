// Ask: one prompt, several models side by side, streamed as they write.

import { fill, write } from "./address.js";
import { Column } from "./answers.js";
import { announce, field, h } from "./dom.js";

const SETTINGS = [
  ["n", "samples", { min: 1, max: 16, value: 1 }],
  ["temperature", "temperature", { min: 0, max: 5, step: 0.05, value: 0.7 }],
  ["top_p", "top-p", { min: 0.01, max: 1, step: 0.01, value: 1 }],
  ["top_k", "top-k (0: all)", { min: 0, value: 50 }],
  ["max_tokens", "length, tokens", { min: 1, value: 96 }],
  ["seed", "seed", { min: 0, value: 0 }],
];

export function makeAsk(place, house, given) {
  const results = h("div", { class: "columns" });
  const models = h("div", { class: "chips" });
  const stop = h("button", { type: "button", hidden: true }, "Stop");
  const go = h("button", { class: "first" }, "Ask");
  const form = h("form", { "aria-label": "Ask" },
    field("Prompt", h("textarea", { name: "prompt", rows: 3, required: true }, house.about.examples.ask[0]?.prompt ?? "")),
    examples(house.about.examples.ask, example => {
      form.elements.prompt.value = example.prompt;
      form.elements.as.value = example.form;
      write("ask", form);
    }),
    h("fieldset", {}, h("legend", {}, "Models, side by side"), models),
    h("details", { open: matchMedia("(min-width: 48rem)").matches },
      h("summary", {}, "Sampling"),
      h("div", { class: "settings" },
        SETTINGS.map(([name, label, limits]) => field(label, h("input", { type: "number", name, required: true, ...limits }))),
        field("prompt is", h("select", { name: "as" }, h("option", { value: "text" }, "text"), h("option", { value: "chat" }, "chat"))))),
    h("div", { class: "row middle" }, go, stop,
      h("label", { class: "chip small" }, h("input", { type: "checkbox", name: "shade", value: "on" }), "shade what was unlikely")));
  place.append(h("h2", {}, "Ask"), h("p", { class: "lead" },
    "The same prompt to several checkpoints. Thinking is dimmed, the answer bright. Choose any token to see how likely it was, what else could have stood there, and to go on from another."),
  h("div", { class: "card" }, form), results);

  offerModels(models, house);
  form.elements.as.value = house.about.examples.ask[0]?.form ?? "text";
  fill(form, given);
  house.refresh.push(() => offerModels(models, house));
  form.addEventListener("change", () => results.classList.toggle("shaded", form.elements.shade.checked));
  results.classList.toggle("shaded", form.elements.shade.checked);

  let running = null;
  stop.addEventListener("click", () => running?.abort());
  form.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener("submit", async event => {
    event.preventDefault();
    running?.abort();
    house.complain(null);
    const names = new FormData(form).getAll("model");
    if (!names.length) return house.complain(new Error("Choose at least one model."));
    const mine = running = new AbortController();
    const settings = settingsOf(form);
    const columns = names.map(name => new Column(name, settings, house));
    results.replaceChildren(...columns.map(column => column.element));
    stop.hidden = false;
    announce(`${names.length} ${names.length === 1 ? "model writes" : "models write"}.`);
    const ends = await Promise.allSettled(columns.map(column => column.write(mine.signal)));
    if (running !== mine) return;
    stop.hidden = true;
    const failed = ends.find(end => end.status === "rejected" && end.reason.name !== "AbortError");
    if (failed) house.complain(failed.reason);
    else announce(columns.map(column => column.summary()).join(" "));
  });
  return { form };
}

/** Buttons that fill the form with an example. */
export function examples(found, choose) {
  if (!found.length) return null;
  return h("div", { class: "examples" }, h("span", { class: "quiet" }, "For example:"),
    found.map(example => h("button", { type: "button", title: example.why ?? "", onclick: () => choose(example) }, example.title ?? shortened(example.prompt))));
}

const shortened = text => (text.length > 48 ? `${text.slice(0, 46).trimEnd()} …` : text);

/** Chips for the models there are now; those that were chosen stay so. */
function offerModels(place, house) {
  const before = place.querySelectorAll("input");
  const chosen = [...before].filter(each => each.checked).map(each => each.value);
  const known = [...before].map(each => each.value);
  const first = house.about.examples.compare;
  place.replaceChildren(...house.about.models.map(model => h("label", { class: "chip", title: (model.lineage ?? []).join(" · ") },
    h("input", { type: "checkbox", name: "model", value: model.id,
      checked: known.length ? chosen.includes(model.id) || !known.includes(model.id) : first.includes(model.id) }), model.id)));
}

function settingsOf(form) {
  const values = { prompt: form.elements.prompt.value, as: form.elements.as.value };
  for (const [name] of SETTINGS) values[name] = Number(form.elements[name].value);
  return values;
}
