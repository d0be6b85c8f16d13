// One edit that was made: what it changed, its dial and switches, its undoing, and the lines that do the same.

import { announce, clock, h, number, shareOf } from "./dom.js";
import { elsewhereToCome, showElsewhere } from "./elsewhere.js";
import { FactRow } from "./fact_row.js";
import { ask, download, events } from "./server.js";

const FEW = 3; // facts that are measured anew whenever the dial rests
const SUMS = { success: "new answer at rank 1", exact: "written exactly so", paraphrase: "paraphrases: new above old", neighbourhood: "neighbours: own answer above new" };

export class Edition {
  /** `shown` is what the server says of the edit; `gone` is called once it is undone. */
  constructor(shown, house, gone) {
    Object.assign(this, { house, gone, name: shown.edit.id, path: `/api/edits/${encodeURIComponent(shown.edit.id)}`, switches: [...shown.edit.switches] });
    this.dial = h("input", { type: "range", min: 0, max: 1.5, step: 0.05, value: shown.edit.scale, "aria-label": `strength of ${this.name}` });
    this.strength = h("output", { class: "number strength" });
    this.state = h("span", { class: "quiet small", role: "status" });
    this.again = h("button", { type: "button", hidden: true }, "Measure at this setting");
    this.facts = h("div", { class: "fact-rows" });
    this.sums = h("div", { class: "scroll" });
    this.others = h("div");
    this.code = h("details", {});
    this.element = h("article", { class: "card edition", "aria-label": `Edit ${this.name}` }, this.head(shown.edit), this.controls(), this.sums, this.facts, this.others, this.code);
    this.dial.addEventListener("input", () => this.turn());
    this.dial.addEventListener("change", () => this.rest());
    this.again.addEventListener("click", () => this.measure());
    this.fill(shown);
  }

  head(edit) {
    const count = edit.facts.length === 1 ? "one fact" : `${edit.facts.length} facts`;
    return h("header", { class: "row middle spread" },
      h("div", {}, h("h3", {}, this.name), h("p", { class: "quiet small" },
        `${count} by ${edit.method} in ${edit.parent}, layers ${edit.layers.join(", ")}, ${edit.seconds < 60 ? `${number(edit.seconds)} s` : clock(edit.seconds)}`)),
      h("div", { class: "row middle" },
        h("button", { type: "button", onclick: () => download(`${this.path}/patch`, `${this.name}.safetensors`).catch(this.house.complain) }, "Save the patch"),
        h("button", { type: "button", onclick: () => this.undo() }, "Undo")));
  }

  controls() {
    const marks = h("div", { class: "marks small quiet", "aria-hidden": "true" }, ["0", "0.5", "1", "1.5"].map(each => h("span", {}, each)));
    return h("div", { class: "dial" }, h("div", { class: "row middle spread" }, h("span", {}, "Strength of the edit ", this.strength), this.state, this.again), this.dial, marks);
  }

  fill({ edit, python, shell }) {
    this.rows = edit.facts.map((fact, i) => new FactRow(fact, { open: edit.facts.length <= FEW, alone: edit.facts.length === 1, flip: on => this.flip(i, on), on: edit.switches[i] > 0 }));
    this.facts.replaceChildren(...this.rows.map(row => row.element));
    this.sums.replaceChildren(edit.facts.length > 1 ? sumsTable(edit) : "");
    this.others.replaceChildren(elsewhereToCome());
    this.code.replaceChildren(h("summary", {}, "The same in Python and in the shell"), h("pre", { tabindex: 0 }, python), h("pre", { tabindex: 0 }, shell));
    this.say();
  }

  /** What else the edit changed comes after what it does. */
  showOthers(elsewhere) {
    this.others.replaceChildren(showElsewhere(elsewhere));
  }

  /** The measuring that `stopped` stops was given up; where nothing has taken its place, it can be asked for again. */
  leftOut(stopped) {
    if (this.measuring !== stopped) return;
    this.others.replaceChildren();
    this.again.hidden = false;
  }

  say() {
    this.strength.textContent = `× ${Number(this.dial.value).toFixed(2)}`;
    this.dial.setAttribute("aria-valuetext", `${this.dial.value} times`);
  }

  flip(number, on) {
    this.switches[number] = on ? 1 : 0;
    this.turn();
    this.rest();
  }

  /** Set the weights as the dial and the switches stand; one request at a time, the last setting wins. */
  async turn() {
    this.say();
    this.measuring?.abort();
    if (this.turning) { this.wanted = true; return this.turning; }
    this.turning = (async () => {
      do {
        this.wanted = false;
        const body = { scale: Number(this.dial.value), switches: this.switches };
        const { likely } = await ask(this.path, { method: "PATCH", body });
        likely.forEach((each, i) => this.rows[i].now(each));
      } while (this.wanted);
    })().catch(error => this.house.complain(error)).finally(() => { this.turning = null; });
    return this.turning;
  }

  async rest() {
    await this.turn();
    if (this.rows.length <= FEW) await this.measure();
    else this.again.hidden = false;
    announce(`Strength ${this.dial.value}: ${this.rows[0].summary()}`);
  }

  async measure() {
    this.again.hidden = true;
    this.measuring?.abort();
    const mine = this.measuring = new AbortController();
    this.state.textContent = "measuring …";
    try {
      for await (const event of events(`${this.path}/measure`, {}, mine.signal)) {
        if (mine !== this.measuring) return;
        if (event.event === "edit") this.refill(event);
        else if (event.event === "done") this.showOthers(event.elsewhere);
      }
    } catch (error) {
      this.leftOut(mine);
      if (error.name !== "AbortError") this.house.complain(error);
    } finally {
      if (mine === this.measuring) this.state.textContent = "";
    }
  }

  /** New numbers, while what is open stays open and what has the focus keeps it. */
  refill(shown) {
    const open = this.rows.map(row => row.element.open), focus = this.rows.findIndex(row => row.element.contains(document.activeElement));
    this.fill(shown);
    this.rows.forEach((row, i) => { row.element.open = open[i]; });
    if (focus >= 0) this.rows[focus].box?.focus();
  }

  async undo() {
    this.measuring?.abort();
    try {
      const { exact } = await ask(this.path, { method: "DELETE" });
      announce(`${this.name} is undone; the weights are ${exact ? "bit for bit" : "not"} what they were.`);
      if (!exact) this.house.complain(new Error(`${this.name} did not come off bit for bit.`));
      this.gone();
      await this.house.modelsChanged();
    } catch (error) {
      this.house.complain(error);
    }
  }
}

function sumsTable(edit) {
  return h("table", { class: "sums" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, `of ${edit.facts.length} facts`), h("th", { scope: "col" }, "before"), h("th", { scope: "col" }, "now"))),
    h("tbody", {}, Object.entries(SUMS).filter(([name]) => edit.now[name]).map(([name, label]) =>
      h("tr", {}, h("th", { scope: "row" }, label), h("td", { class: "number" }, shareOf(edit.before[name])), h("td", { class: "number" }, h("b", {}, shareOf(edit.now[name])))))));
}

