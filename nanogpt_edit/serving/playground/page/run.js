// Run: a run under way or finished, read again from its files while the tab is open.

import { curve } from "./curves.js";
import { clock, field, h } from "./dom.js";
import { microscope } from "./microscope.js";
import { ask, download, hasToken } from "./server.js";

const SECONDS = 3;
const NAMES = { base: "Base", sft: "SFT", grpo: "GRPO", edited: "Edited", pretrain: "Pretraining" };

export function makeRun(place, house, given) {
  const title = h("h2", {}, "Run"), state = h("p", { class: "quiet", role: "status" });
  const line = h("ol", { class: "stages" }), plots = h("div", { class: "plots" });
  const step = h("select", { name: "step" }), colour = h("select", { name: "colour" },
    [["logprob", "log-probability"], ["entropy", "entropy"], ["advantage", "advantage"], ["clipped", "clipping"]].map(([value, label]) => h("option", { value }, label)));
  const form = h("form", { class: "row", "aria-label": "Rollouts" }, field("Step of GRPO", step), field("Colour by", colour));
  const rollouts = h("div", { class: "rollouts" }), told = h("p", { class: "quiet small" });
  const ledger = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The ledger" }), outcomes = h("ul", { class: "plain-list" });
  const report = h("p", {});
  const part = (heading, ...inside) => h("section", { class: "run-part" }, h("h3", {}, heading), inside);
  const learning = part("Learning curves", plots), seen = part("Rollouts, token by token", form, told, rollouts), gained = part("The ledger", ledger, outcomes, report);
  place.append(h("header", {}, title, state), line, learning, seen, gained);
  colour.value = given.get("colour") ?? "logprob";

  let timer = null, last = "", shownStep = null, newest = null;

  async function look() {
    try {
      const run = await ask("/api/run");
      showStages(run);
      const stamp = JSON.stringify(run);
      if (stamp !== last) {
        await Promise.all([showCurves(), showRollouts(run), showLedger(run)]);
        last = stamp;
      }
      if (run.running) timer = setTimeout(look, 1000 * SECONDS);
      else timer = setTimeout(look, 5000 * SECONDS);
    } catch (error) {
      house.complain(error);
    }
  }

  function showStages(run) {
    title.textContent = `Run ${run.name}`;
    const busy = run.stages.find(stage => ["under way", "being measured"].includes(stage.state));
    const how = busy?.state === "being measured" ? ", being measured" : busy?.steps ? `, step ${busy.step ?? 0} of ${busy.steps}` : "";
    state.textContent = run.running ? `at work${busy ? `: ${NAMES[busy.name] ?? busy.name}${how}` : ""}; this page follows.`
      : run.has_report && run.stages.every(stage => stage.state === "done") ? "finished." : "not at work now; the same command goes on from where it was.";
    line.replaceChildren(...run.stages.map(stage => {
      const share = ["done", "being measured"].includes(stage.state) ? 1 : stage.steps ? (stage.step ?? 0) / stage.steps : 0;
      const fill = h("i");
      fill.style.width = `${100 * share}%`;
      return h("li", { class: `stage ${stage.state.replace(" ", "-")}` }, h("b", {}, NAMES[stage.name] ?? stage.name),
        h("span", { class: "small quiet" }, stage.state, stage.seconds ? ` · ${clock(stage.seconds)}` : ""), h("span", { class: "bar" }, fill));
    }));
  }

  async function showCurves() {
    const found = await ask("/api/run/curves");
    learning.hidden = !Object.keys(found).length;
    plots.replaceChildren(...Object.entries(found).flatMap(([stage, series]) =>
      Object.entries(series).map(([metric, points]) => curve(`${NAMES[stage]} · ${metric.replaceAll("_", " ")}`, points))));
  }

  async function showRollouts(run) {
    seen.hidden = !run.rollout_steps.length;
    if (seen.hidden) return;
    const latest = run.rollout_steps.at(-1), follow = shownStep === null || shownStep === newest;
    newest = latest;
    const chosen = follow ? latest : shownStep;
    step.replaceChildren(...run.rollout_steps.map(each => h("option", { value: each, selected: each === chosen }, each === latest ? `${each} (newest)` : String(each))));
    if (chosen !== shownStep) await openStep(chosen);
  }

  async function openStep(number) {
    const found = await ask(`/api/run/rollouts?step=${number}`);
    shownStep = number;
    told.textContent = `${found.n} completions in this step, ${found.correct} right; some of them, token by token.`;
    rollouts.replaceChildren(...microscope(found.rollouts));
    rollouts.dataset.colour = colour.value;
  }

  async function showLedger(run) {
    const found = await ask("/api/run/ledger");
    gained.hidden = !found.rows.length && !run.has_report;
    ledger.replaceChildren(found.rows.length ? ledgerTable(found) : "");
    outcomes.replaceChildren(...found.rows.filter(row => row.outcome).map(row => h("li", {}, h("b", {}, `${row.stage}: `), row.outcome)));
    report.replaceChildren(run.has_report ? h("button", { type: "button", onclick: () => openReport(run.name).catch(house.complain) }, "Open the report") : "The report is written at the end of the run.");
  }

  step.addEventListener("change", () => openStep(Number(step.value)).catch(house.complain));
  colour.addEventListener("change", () => { rollouts.dataset.colour = colour.value; });
  return {
    form,
    shown(open) {
      clearTimeout(timer);
      if (open && house.about.run) look();
    },
  };
}

/** In a tab of its own; where the server asks for a token, which a tab cannot bring, as a file. */
async function openReport(name) {
  if (hasToken()) await download("/api/run/report", `${name}-report.html`);
  else window.open("/api/run/report", "_blank", "noopener");
}

function ledgerTable(found) {
  return h("table", { class: "ledger" },
    h("thead", {}, h("tr", {}, h("td", {}), found.columns.map(name => h("th", { scope: "col" }, name)))),
    h("tbody", {}, found.rows.map(row => h("tr", {}, h("th", { scope: "row" }, row.stage), row.cells.map(cell => h("td", {}, cell ? [
      h("b", {}, cell.value), h("span", { class: "quiet small" }, `${cell.low} to ${cell.high}`),
      cell.mark ? h("span", { class: `small ${cell.verdict}`, title: cell.verdict }, `${cell.mark} ${cell.change}`) : null] : "–"))))));
}
