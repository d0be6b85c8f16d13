// Rollouts of GRPO token by token: how likely each token was, how open its place, what the rollout earned, what was clipped.

import { h, number, percent, visible } from "./dom.js";

/** An element for every problem, with its rollouts, the better ones first. */
export function microscope(rollouts) {
  const groups = new Map();
  for (const each of rollouts) groups.set(each.group, [...(groups.get(each.group) ?? []), each]);
  const most = Math.max(...rollouts.map(each => Math.abs(each.advantage)), 1e-6);
  return [...groups.values()].map(group => h("article", { class: "card" },
    h("p", {}, group[0].question, h("span", { class: "quiet" }, ` answer ${group[0].gold}`)), group.map(each => rollout(each, most))));
}

function rollout(each, most) {
  const right = each.rewards.accuracy === 1;
  const readout = h("p", { class: "readout small quiet" }, "Point at a token for its numbers.");
  const text = h("p", { class: "tokens scope" }, each.token_texts.map((token, i) => {
    const told = `“${visible(token)}”: p ${percent(Math.exp(each.logprobs[i]))}, entropy ${number(each.entropy[i])} nats`
      + (each.clipped[i] ? `, held at the ${each.clipped[i] < 0 ? "lower" : "upper"} bound` : "");
    const made = h("span", { title: told, class: [each.clipped[i] ? "held" : "", each.advantage < 0 ? "minus" : "plus"].join(" ") }, token);
    made.style.setProperty("--surprise", `${Math.round(100 * Math.min(1, -each.logprobs[i] / 3))}%`);
    made.style.setProperty("--open", `${Math.round(100 * Math.min(1, each.entropy[i] / 2))}%`);
    made.style.setProperty("--worth", `${Math.round(100 * Math.abs(each.advantage) / most)}%`);
    made.addEventListener("pointerenter", () => { readout.textContent = told; });
    return made;
  }));
  return h("div", { class: "rollout" },
    h("p", { class: "small" }, h("b", { class: right ? "good" : "bad" }, right ? "✓ right" : "✗ wrong"),
      h("span", { class: "quiet" }, ` reward ${number(each.reward)} · advantage ${each.advantage >= 0 ? "+" : "−"}${number(Math.abs(each.advantage))} · ${each.tokens} tokens${each.in_loss ? "" : " · not in the loss"}`)),
    text, readout);
}
