// The facts of the Edit form: the one that is typed, with its subject found, or the fifty of the package.

import { h } from "./dom.js";
import { ask } from "./server.js";

let fifty = null;

/** The facts as the server takes them. */
export function factsOf(form) {
  if (form.elements.which.value === "fifty") {
    const chosen = new Set([...form.querySelectorAll('[name="fact"]:checked')].map(each => each.value));
    return (fifty ?? []).filter(fact => chosen.has(fact.id));
  }
  const value = name => form.elements[name].value.trim();
  const lines = name => value(name).split("\n").map(line => line.trim()).filter(Boolean);
  const neighbours = lines("neighbours").map(line => {
    const [, prompt, answer] = line.match(/^(.*)=(.*)$/) ?? [null, line, ""];
    return { prompt: prompt.trim(), target_true: answer.trim() };
  });
  return [{
    prompt: value("prompt"), subject: value("subject") || form.dataset.subject || "", target_new: value("target_new"),
    target_true: value("target_true"), paraphrases: lines("paraphrases"), neighbourhood: neighbours,
  }];
}

/** Show the form's one fact, or the fifty to choose from. */
export async function showFacts(form, house) {
  const many = form.elements.which.value === "fifty";
  form.querySelector(".one-fact").hidden = many;
  const place = form.querySelector(".fifty");
  place.hidden = !many;
  if (!many || place.children.length) return;
  try {
    ({ facts: fifty } = await ask("/api/facts"));
  } catch (error) {
    house.complain(error);
    return;
  }
  const all = on => () => place.querySelectorAll("input").forEach(box => { box.checked = on; });
  place.append(
    h("div", { class: "row middle" }, h("button", { type: "button", onclick: all(true) }, "All"), h("button", { type: "button", onclick: all(false) }, "None")),
    h("fieldset", {}, h("legend", {}, "Facts to edit"), h("ul", { class: "fact-list" }, fifty.map(fact => h("li", {},
      h("label", {}, h("input", { type: "checkbox", name: "fact", value: fact.id, checked: true }),
        h("span", {}, `${fact.prompt} `, h("s", {}, fact.target_true), " ", h("b", {}, fact.target_new))))))));
}

/** Say under the form where the subject stands in the prompt, and what the model says there now. */
export async function followSubject(form, house) {
  const place = form.querySelector("#found");
  const { prompt, subject, model } = form.elements;
  if (!prompt.value.trim()) return place.replaceChildren();
  try {
    const found = await ask("/api/subject", { body: { model: model.value, prompt: prompt.value, subject: subject.value } });
    form.dataset.subject = found.subject;
    if (!found.subject) return place.replaceChildren("No subject is found in this prompt; name it.");
    const text = prompt.value;
    place.replaceChildren(text.slice(0, found.start), h("mark", {}, text.slice(found.start, found.end)), text.slice(found.end), " ",
      h("span", { class: "says" }, found.says || "(nothing)"),
      h("span", { class: "quiet" }, ` · the subject is ${found.tokens.length} ${found.tokens.length === 1 ? "token" : "tokens"}, found ${found.lookup === "exact" ? "as written" : found.lookup}`));
  } catch (error) {
    form.dataset.subject = "";
    place.textContent = error.message;
  }
}
