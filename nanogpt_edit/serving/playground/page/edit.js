// Edit: say what a model should believe, see what that does, turn it up, down and off.

import { fill, write } from "./address.js";
import { examples } from "./ask.js";
import { announce, field, h, settled } from "./dom.js";
import { Edition } from "./edition.js";
import { factsOf, followSubject, showFacts } from "./facts.js";
import { ask, events } from "./server.js";

const PHASES = {
  "loading a model": "loading the model", "writing text of its own": "the model writes text of its own, to be spared (once)",
  covariance: "reading what ordinary text looks like", choosing: "choosing layers and strength", values: "finding what the model should think",
  solving: "solving for the weights", refining: "refining", editing: "editing", "writing prefixes": "writing texts to put before the prompt",
  "measuring facts": "measuring", "writing answers": "measuring", scoring: "measuring", "fine-tuning": "fine-tuning",
};

export function makeEdit(place, house, given) {
  const list = h("div", { class: "editions" });
  const undoAll = h("button", { type: "button", class: "plain", hidden: true }, "Undo all edits");
  const offered = house.about.examples.edit.map(each => ({ ...each, title: `${each.prompt} ${each.target_new}` }));
  const form = makeForm();
  const progress = makeProgress(form);
  place.append(h("h2", {}, "Edit"), h("p", { class: "lead" },
    "Write a fact into a model’s weights. The model you choose stays as it is; the edited one stands beside it under a name of its own, for Ask and Trace too."),
  h("div", { class: "card" }, form, progress.element), h("div", { class: "row spread middle" }, h("h3", {}, "Edits"), undoAll), list);

  if (offered[0]) fillFact(form, offered[0]);
  fill(form, given);
  offerModels(form, house);
  house.refresh.push(() => offerModels(form, house));
  const look = settled(() => followSubject(form, house), 250);
  form.addEventListener("input", event => ["prompt", "subject"].includes(event.target.name) && look());
  form.elements.model.addEventListener("change", look);

  function show(shown, { scroll = true } = {}) {
    const edition = new Edition(shown, house, () => { edition.element.remove(); settle(); });
    list.prepend(edition.element);
    settle();
    if (scroll) edition.element.scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    return edition;
  }

  function settle() {
    undoAll.hidden = !list.children.length;
    if (!list.children.length) list.append(h("p", { class: "quiet", id: "no-edits" }, "None yet."));
    else list.querySelector("#no-edits")?.remove();
    undoAll.hidden = !list.querySelector("article");
  }

  /** The edits that the server has already: of another page, or of this one before it was loaded anew. */
  async function recall() {
    const { edits } = await ask("/api/edits");
    for (const name of edits) {
      const mine = recalling = new AbortController();
      let edition = null;
      try {
        for await (const event of events(`/api/edits/${encodeURIComponent(name)}/measure`, {}, mine.signal)) {
          if (event.event === "edit") {
            edition = show(event, { scroll: false });
            edition.measuring = mine;
          } else if (event.event === "done") edition.showOthers(event.elsewhere);
        }
      } catch (error) {
        edition?.leftOut(mine);
        if (error.name === "AbortError") return;
        if (error.status !== 400) house.complain(error); // 400: undone in the meantime
      }
    }
  }

  async function work(path, body) {
    house.complain(null);
    progress.begin();
    let edition = null;
    try {
      for await (const event of events(path, body, progress.signal)) {
        if (event.event === "progress") progress.tell(edition ? "measuring what else changed" : PHASES[event.phase] ?? event.phase, event.done, event.of);
        else if (event.event === "edit") {
          await house.modelsChanged();
          edition = show(event);
          edition.measuring = progress.abort; // the dial need not wait for it
          announce(`The edit is made: ${event.edit.id}. ${event.edit.facts[0].fact.prompt} ${event.edit.facts[0].says}.`);
        } else if (event.event === "done") edition.showOthers(event.elsewhere);
      }
    } catch (error) {
      edition?.leftOut(progress.abort);
      if (error.name !== "AbortError") house.complain(error);
    } finally {
      progress.end();
    }
  }

  form.addEventListener("submit", event => {
    event.preventDefault();
    const settings = form.elements.method.value ? { method: form.elements.method.value } : {};
    work("/api/edits", { model: form.elements.model.value, facts: factsOf(form), settings });
  });
  form.querySelector("#load-patch").addEventListener("change", async event => {
    const [file] = event.target.files;
    if (!file) return;
    const query = new URLSearchParams({ model: form.elements.model.value });
    await work(`/api/patches?${query}`, file);
    event.target.value = "";
  });
  undoAll.addEventListener("click", async () => {
    progress.abort?.abort();
    recalling?.abort();
    try {
      const { exact, undone } = await ask("/api/edits", { method: "DELETE" });
      list.replaceChildren(h("p", { class: exact ? "good" : "trouble", role: "status" },
        `${undone.length} ${undone.length === 1 ? "edit is" : "edits are"} undone; the weights are ${exact ? "bit for bit" : "NOT"} what they were.`));
      undoAll.hidden = true;
      await house.modelsChanged();
    } catch (error) {
      house.complain(error);
    }
  });
  settle();
  let looked = false, recalling = null;
  return { form, shown(open) { if (open && !looked) { looked = true; look(); recall().catch(house.complain); } } };

  function fillFact(target, example) {
    for (const name of ["prompt", "subject", "target_new", "target_true"]) target.elements[name].value = example[name] ?? "";
    target.elements.paraphrases.value = (example.paraphrases ?? []).join("\n");
    target.elements.neighbours.value = (example.neighbourhood ?? []).map(each => `${each.prompt} = ${each.target_true}`).join("\n");
    target.elements.which.value = "one";
    showFacts(target, house);
  }

  function makeForm() {
    const methods = house.about.methods;
    const made = h("form", { "aria-label": "Edit" },
      h("div", { class: "row" },
        field("Model", h("select", { name: "model" })),
        field("Method", h("select", { name: "method" }, h("option", { value: "" }, "as its recipe says"), methods.map(name => h("option", { value: name }, name)))),
        field("Facts", h("select", { name: "which" }, h("option", { value: "one" }, "one, typed here"), h("option", { value: "fifty" }, "the fifty of the package")))),
      h("div", { class: "one-fact" },
        examples(offered, example => { fillFact(made, example); write("edit", made); look(); }),
        field("Prompt: text that ends right before the answer", h("input", { name: "prompt", autocomplete: "off" })),
        h("div", { class: "grid tight" },
          field("Subject: what it is about (empty: found)", h("input", { name: "subject", autocomplete: "off" })),
          field("New answer", h("input", { name: "target_new", autocomplete: "off" })),
          field("Answer now (empty: what the model says)", h("input", { name: "target_true", autocomplete: "off" }))),
        h("p", { class: "found small", id: "found", "aria-live": "polite" }),
        h("details", {}, h("summary", {}, "Measured with: other ways to ask, and neighbours that must stay"),
          h("div", { class: "grid tight" },
            field("Paraphrases, one a line", h("textarea", { name: "paraphrases", rows: 3 })),
            field("Neighbours, one a line: prompt = answer", h("textarea", { name: "neighbours", rows: 3 }))))),
      h("div", { class: "fifty", hidden: true, id: "fifty" }),
      h("div", { class: "row middle" }, h("button", { class: "first" }, "Edit"),
        h("label", { class: "file plain" }, "Load a patch", h("input", { type: "file", id: "load-patch", accept: ".safetensors", class: "unseen" }))));
    made.elements.which.addEventListener("change", () => showFacts(made, house));
    return made;
  }

}

function offerModels(form, house) {
  const select = form.elements.model, chosen = select.value || new URLSearchParams(location.hash.split("?")[1]).get("model") || house.about.examples.edited;
  select.replaceChildren(...house.about.models.map(model => h("option", { value: model.id, selected: model.id === chosen }, model.id)));
}

function makeProgress(form) {
  const meter = h("progress", { "aria-label": "progress of the edit" }), label = h("span", { class: "quiet" });
  const cancel = h("button", { type: "button" }, "Cancel");
  const element = h("div", { class: "row middle working", hidden: true, role: "status" }, meter, label, cancel);
  const made = {
    element,
    begin() {
      made.abort = new AbortController();
      made.signal = made.abort.signal;
      made.tell("beginning", 0, null);
      element.hidden = false;
      form.querySelector("button.first").disabled = true;
    },
    tell(phase, done, of) {
      label.textContent = of ? `${phase}, ${Math.min(done, of)} of ${of}` : phase;
      if (of) { meter.max = of; meter.value = done; } else meter.removeAttribute("value");
    },
    end() {
      element.hidden = true;
      form.querySelector("button.first").disabled = false;
    },
  };
  cancel.addEventListener("click", () => made.abort.abort());
  return made;
}
