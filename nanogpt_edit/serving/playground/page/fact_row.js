// One fact of an edit: what the model said and says, and every way of asking with its answers as bars.

import { bar, h, percent } from "./dom.js";

const KINDS = {
  negation: "denied: the new answer should not be said", paraphrase: "asked in other words", behind: "behind other text", question: "as a question",
  claim: "true or false", alias: "under another name", reversed: "the other way round", one_hop: "what follows", about: "a text about it",
  neighbour: "neighbours: must stay", attribute: "others with this answer: must stay", same_subject: "other facts of the subject: must stay",
};

export class FactRow {
  /** `flip(on)` is called by its switch. */
  constructor(shown, { open, alone, flip, on }) {
    const { prompt, target_new } = this.fact = shown.fact;
    const [own, ...others] = shown.prompts;
    this.box = alone ? null : h("input", { type: "checkbox", role: "switch", checked: on, "aria-label": `the fact ${prompt} ${target_new}`, onchange: event => flip(event.target.checked) });
    this.values = own.answers.map(answer => answer.now);
    this.answers = own.answers;
    this.live = bars(own.answers, this.values);
    this.element = h("details", { class: "fact", open },
      h("summary", {}, h("span", { class: "fact-head" }, this.box ? h("span", { class: "switch", onclick: event => event.stopPropagation() }, this.box) : null,
        h("span", {}, `${prompt} `, h("b", {}, target_new)), mark(shown))),
      h("div", { class: "grid before-after" },
        said("before", shown.said, prompt, bars(own.answers, own.answers.map(answer => answer.before))),
        said("now", shown.says, prompt, this.live, shown.exact)),
      table(others));
  }

  /** The probabilities of the new and the true answer as the dial stands. */
  now(values) {
    this.values = values;
    const next = bars(this.answers, values);
    this.live.replaceWith(next);
    this.live = next;
  }

  summary() {
    return `${this.answers.map((answer, i) => `${answer.text} ${percent(this.values[i])}`).join(", ")}.`;
  }
}

function mark(shown) {
  const first = shown.prompts[0].answers[0].rank_now === 1;
  const [text, kind] = shown.exact ? ["written exactly", "good"] : first ? ["first, but not exactly", "half"] : ["not first", "off"];
  return h("span", { class: `mark ${kind}` }, text);
}

function said(when, text, prompt, own, exact) {
  return h("div", { class: `said ${when}` }, h("p", { class: "quiet small" }, when),
    h("p", { class: "sentence" }, h("span", { class: "quiet" }, `${prompt} `), h("b", { class: exact ? "new" : "" }, text || "(nothing)")), own);
}

/** The answers' probabilities as bars, the first in the accent. */
function bars(answers, values) {
  return h("dl", { class: "pair" }, answers.map((answer, i) => [h("dt", {}, answer.text),
    h("dd", {}, bar(values[i], i ? "old" : ""), h("span", { class: "number" }, percent(values[i])))]));
}

function table(prompts) {
  const groups = Object.keys(KINDS).map(kind => [kind, prompts.filter(each => each.kind === kind)]).filter(([, all]) => all.length);
  if (!groups.length) return null;
  return h("div", { class: "scroll" }, h("table", { class: "asked" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "asked"), h("th", { scope: "col" }, "answer"), h("th", { scope: "col", class: "number" }, "before"), h("th", { scope: "col", class: "number" }, "now"), h("td", { class: "track" }))),
    groups.map(([kind, all]) => h("tbody", {}, h("tr", {}, h("th", { colspan: 5, scope: "rowgroup", class: "group" }, KINDS[kind])), all.flatMap(rows)))));
}

/** A row for each answer of a prompt; beneath the prompt what the model writes, where it is let write. */
function rows(each) {
  return each.answers.map((answer, i) => h("tr", { class: i === each.answers.length - 1 ? "last" : "" },
    i ? null : h("td", { rowspan: each.answers.length, class: "prompt" }, each.prompt,
      each.says === null ? null : h("span", { class: "quiet small writes" }, `${each.said || "(nothing)"} → `, h("b", {}, each.says || "(nothing)"))),
    h("td", {}, answer.text), h("td", { class: "number" }, percent(answer.before)), h("td", { class: "number" }, percent(answer.now)),
    h("td", { class: "track" }, bar(answer.now, i ? "old" : ""))));
}
