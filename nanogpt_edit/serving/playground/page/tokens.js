// A text whose every token can be chosen: its probability, what else could have stood there, and a way to go on from it.

import { bar, h, percent, visible } from "./dom.js";

const STARTS = { "<think>": "thinking", "<answer>": "answer" };
const ENDS = ["</think>", "</answer>"];
const MARK = /^<\|.*\|>$/; // <|endoftext|>, <|im_end|>

export class TokenText {
  /** `branch(place, other)` goes on from another token; none where nothing can. */
  constructor(label, branch) {
    this.tokens = [];
    this.part = "";
    this.branch = branch;
    this.text = h("p", { class: "tokens", role: "group", "aria-label": `Tokens of ${label}. Arrow keys move, Enter tells more.` });
    this.card = h("div", { class: "token-card", hidden: true });
    this.text.addEventListener("click", event => this.open(this.placeOf(event.target)));
    this.text.addEventListener("keydown", event => this.obey(event));
  }

  append(token) {
    const place = this.tokens.push(token) - 1;
    const tag = token.text in STARTS || ENDS.includes(token.text) || MARK.test(token.text);
    this.part = STARTS[token.text] ?? this.part;
    const kind = [tag ? "tag" : this.part, token.given ? "given" : "", token.chosen ? "chosen" : ""].join(" ").trim();
    if (ENDS.includes(token.text)) this.part = "";
    const likely = token.logprob === null ? "" : `, ${percent(Math.exp(token.logprob))}`;
    const element = h("span", { role: "button", tabindex: place ? -1 : 0, class: kind, "aria-label": `${visible(token.text)}${likely}` }, token.text);
    if (token.logprob !== null) element.style.setProperty("--surprise", `${Math.round(100 * Math.min(1, -token.logprob / 3))}%`);
    this.text.append(element);
  }

  /** The text as it is read aloud: the answer where there is one. */
  plain() {
    const text = this.tokens.map(token => token.text).join("");
    const answer = text.match(/<answer>(.*?)<\/answer>/s);
    return answer ? `answer ${answer[1]}.` : text.replace(/<\/?(think|answer)>/g, " ").slice(0, 200);
  }

  placeOf(element) {
    return [...this.text.children].indexOf(element);
  }

  obey(event) {
    const place = this.placeOf(event.target);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Enter" || event.key === " ") this.open(place);
    else if (event.key === "Escape") this.close(place);
    else if (step && this.text.children[place + step]) this.focus(place + step, place);
    else return;
    event.preventDefault();
  }

  focus(place, before) {
    this.text.children[before].tabIndex = -1;
    this.text.children[place].tabIndex = 0;
    this.text.children[place].focus();
  }

  close(place) {
    this.card.hidden = true;
    this.text.querySelector("[aria-pressed]")?.removeAttribute("aria-pressed");
    if (place >= 0) this.text.children[place].focus();
  }

  open(place) {
    if (place < 0) return;
    this.close(-1);
    const token = this.tokens[place];
    this.text.children[place].setAttribute("aria-pressed", "true");
    this.card.replaceChildren(
      h("div", { class: "row middle spread" },
        h("p", {}, h("b", { class: "mono" }, visible(token.text)), ` was written, with probability ${token.logprob === null ? "–" : percent(Math.exp(token.logprob))}`),
        h("button", { type: "button", class: "plain", onclick: () => this.close(place) }, "Close")),
      token.top.length ? h("ol", { class: "alternatives", "aria-label": "What could have stood here; any of them can be continued from" }, token.top.map(other => this.alternative(place, token, other)))
        : h("p", { class: "quiet small" }, "What else could have stood here was not recorded."));
    this.card.hidden = false;
  }

  alternative(place, token, other) {
    const p = Math.exp(other.logprob), own = other.id === token.id;
    return h("li", { class: own ? "own" : "" },
      h("span", { class: "mono word" }, visible(other.token)), bar(p), h("span", { class: "number" }, percent(p)),
      own ? h("span", { class: "quiet small" }, "written") : this.branch
        ? h("button", { type: "button", class: "plain", "aria-label": `continue from “${visible(other.token)}”`, title: "continue from this one", onclick: () => { this.close(-1); this.branch(place, other); } }, "continue") : null);
  }
}
