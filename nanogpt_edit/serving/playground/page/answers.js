// What one model writes: a column of samples that grow as tokens arrive, and branches of them.

import { announce, h } from "./dom.js";
import { events } from "./server.js";
import { TokenText } from "./tokens.js";

const ALTERNATIVES = 10;

export class Column {
  /** `settings`: the prompt and the sampling, as the form has them. */
  constructor(model, settings, house) {
    Object.assign(this, { model, settings, house, samples: [], promptIds: null });
    this.list = h("div", { class: "samples" });
    this.rate = h("span", { class: "quiet small" });
    this.element = h("article", { class: "card column", "aria-label": `What ${model} writes` },
      h("header", { class: "row middle spread" }, h("h3", {}, model), this.rate), this.list);
  }

  /** Ask for all samples and show them as they come. */
  async write(signal) {
    const { n, prompt, as } = this.settings;
    for (let i = 0; i < n; i++) this.add(new Sample(this, n > 1 ? `sample ${i + 1}` : ""));
    const chat = as === "chat";
    const given = chat
      ? { messages: [{ role: "user", content: prompt }], logprobs: true, top_logprobs: ALTERNATIVES }
      : { prompt, logprobs: ALTERNATIVES };
    await this.stream(chat ? "/v1/chat/completions" : "/v1/completions", given, this.samples, signal);
  }

  /** A sample that repeats `sample` up to its token `place`, has another token there, and goes on. */
  async branch(sample, place, other) {
    const kept = sample.tokens.slice(0, place);
    const twin = new Sample(this, `branch at token ${place + 1}`);
    this.add(twin, sample);
    for (const token of kept) twin.append({ ...token, given: true });
    twin.append({ id: other.id, text: other.token, logprob: other.logprob, top: sample.tokens[place].top, chosen: true });
    const ids = [...this.promptIds, ...twin.tokens.map(token => token.id)];
    announce(`${this.model} goes on from “${other.token}”.`);
    try {
      await this.stream("/v1/completions", { prompt: ids, logprobs: ALTERNATIVES, n: 1 }, [twin]);
      announce(`The branch is written: ${twin.plain()}`);
    } catch (error) {
      this.house.complain(error);
    }
  }

  add(sample, after) {
    this.samples.push(sample);
    if (after) after.element.after(sample.element);
    else this.list.append(sample.element);
  }

  async stream(path, given, samples, signal) {
    const { n, temperature, top_p, top_k, max_tokens, seed } = this.settings;
    const sampling = { n, temperature, top_p, max_tokens, seed, ...(top_k > 0 ? { top_k } : {}) };
    const body = { model: this.model, stream: true, return_token_ids: true, ...sampling, ...given };
    const began = performance.now();
    let count = 0, first = 0;
    for await (const chunk of events(path, body, signal)) {
      for (const choice of chunk.choices ?? []) {
        this.promptIds ??= choice.prompt_token_ids ?? chunk.prompt_token_ids ?? null;
        const tokens = tokensOf(choice);
        if (tokens.length && !first) first = performance.now() - began;
        count += tokens.length;
        samples[choice.index].take(tokens, choice.finish_reason);
      }
    }
    const seconds = (performance.now() - began) / 1000;
    this.rate.textContent = `first token ${(first / 1000).toFixed(2)} s · ${(count / seconds).toFixed(0)} tokens/s`;
  }

  summary() {
    return `${this.model}: ${this.samples[0].plain()}`;
  }
}

class Sample extends TokenText {
  constructor(column, title) {
    super(`what ${column.model} writes${title ? `, ${title}` : ""}`, (place, other) => column.branch(this, place, other));
    this.end = h("span", { class: "quiet small" });
    this.element = h("div", { class: "sample" },
      title ? h("p", { class: "quiet small" }, title) : null, this.text, this.card, this.end);
  }

  take(tokens, finishReason) {
    for (const token of tokens) this.append(token);
    if (finishReason) {
      const why = finishReason === "length" ? "cut at the length asked for" : "ended by itself";
      this.end.textContent = `${this.tokens.length} ${this.tokens.length === 1 ? "token" : "tokens"}, ${why}`;
    }
  }
}

/** The tokens of a streamed choice: {id, text, logprob, top}; `top` are the likeliest at its place, {id, token, logprob}. */
function tokensOf(choice) {
  const ids = choice.token_ids ?? [];
  const told = choice.logprobs?.content;
  const texts = told ? told.map(each => each.token) : choice.logprobs?.tokens ?? [];
  const logprobs = told ? told.map(each => each.logprob) : choice.logprobs?.token_logprobs ?? [];
  return ids.map((id, i) => ({ id, text: texts[i] ?? "", logprob: logprobs[i] ?? null, top: choice.top_tokens?.[i] ?? [] }));
}
