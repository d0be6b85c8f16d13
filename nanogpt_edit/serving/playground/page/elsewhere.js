// What else an edit changed: true facts and ordinary texts, the worst first, and how sure the means are.

import { h, number, percent, shareOf, visible } from "./dom.js";

/** What stands there until it is measured. */
export const elsewhereToCome = () => h("section", { class: "elsewhere" }, h("h4", {}, "What else changed"), h("p", { class: "quiet" }, "being measured on other facts and on ordinary text …"));

/** `found` is what the server measured on facts and texts that the edit is not about. */
export function showElsewhere(found) {
  const { change, text } = found;
  const points = value => {
    const told = Math.abs(100 * value).toFixed(1);
    return `${Number(told) === 0 ? "" : value > 0 ? "+" : "−"}${told}`;
  };
  return h("section", { class: "elsewhere" }, h("h4", {}, "What else changed"),
    h("ul", { class: "plain-list" },
      h("li", {}, `Of ${change.n} other facts the model says ${shareOf(found.recalled_before)} before and `, h("b", {}, shareOf(found.recalled_now)), " now; ",
        `the probability of their answers moved by ${points(change.value)} points [${points(change.low)}, ${points(change.high)}].`),
      h("li", {}, `On ${number(text.tokens)} tokens of ordinary text the next-token predictions are `, h("b", {}, `${number(text.kl.value)} nats per token`), ` [${number(text.kl.low)}, ${number(text.kl.high)}] away from what they were (KL); another token comes first at ${shareOf(text.top_changed)} of the places.`)),
    h("details", {}, h("summary", {}, "Those that moved most"),
      h("div", { class: "grid" },
        h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "fact"), h("th", { scope: "col", class: "number" }, "before"), h("th", { scope: "col", class: "number" }, "now"))),
          h("tbody", {}, found.facts.map(fact => h("tr", {}, h("td", {}, `${fact.prompt} `, h("b", {}, fact.target)), h("td", { class: "number" }, percent(fact.before)),
            h("td", { class: "number" }, percent(fact.now), fact.recalled_before && !fact.recalled_now ? h("span", { class: "lost" }, " lost") : null)))))),
        h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "text"), h("th", { scope: "col" }, "next, before → now"), h("th", { scope: "col", class: "number" }, "nats"))),
          h("tbody", {}, text.worst.slice(0, 6).map(each => h("tr", {}, h("td", {}, `… ${each.text}`), h("td", {}, `“${visible(each.before)}” ${percent(each.p_before)} → “${visible(each.after)}” ${percent(each.p_after)}`), h("td", { class: "number" }, number(each.kl))))))))));
}
