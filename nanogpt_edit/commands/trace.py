"""`nanogpt-edit trace MODEL`: where in the network a fact is recalled, for one prompt or on average over many facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nanogpt_edit.commands.arguments import Trace
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.speaker import load_speaker
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import make_folder, write_json
from nanogpt_edit.common.stats import Interval, change_of_share
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.fact_files import read_facts
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.evaluation.facts import measure_facts
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline.sweep import Trial, read_trials
from nanogpt_edit.report.pictures import check_picture, save_pictures
from nanogpt_edit.tracing import tracing
from nanogpt_edit.tracing.average import average_trace, effect_at, token_groups
from nanogpt_edit.tracing.config import Site
from nanogpt_edit.tracing.records import AverageTrace
from nanogpt_edit.tracing.tracing import Traced, trace_facts
from nanogpt_edit.tracing.view import Trace as Shown


def trace(arguments: list[str]) -> int:
    """The verb `trace`."""
    chosen = parse(Trace, arguments, verb="trace")
    if chosen.facts is not None and (chosen.prompt or chosen.subject or chosen.target):
        raise UserError("--facts brings its own prompts; leave --prompt, --subject and --target out, or --facts.")
    if chosen.sweep is not None and (chosen.facts is None or chosen.out is None):
        raise UserError("--sweep is drawn over the trace of facts; give --facts, and --out for the pictures.")
    if chosen.facts is not None:
        return trace_many(chosen, chosen.facts)
    if chosen.prompt is None or chosen.subject is None:
        raise UserError("what is to be traced? Give --prompt and --subject, or --facts.")
    if chosen.out is not None:
        check_picture(chosen.out)
    model, _ = load_speaker(chosen.model, chosen.device)
    found = Shown(tracing.trace(model, chosen.prompt, chosen.subject, chosen.target, chosen.trace))
    print(found)
    if chosen.out is not None:
        found.save(chosen.out, site=chosen.site)
        print(f"\nThe heat map: {chosen.out}")
    return 0


def trace_many(chosen: Trace, source: str) -> int:
    """Trace the facts the model recalls, print and draw the average."""
    wanted, trials = read_facts(source), [] if chosen.sweep is None else read_trials(chosen.sweep)
    if chosen.out is not None:
        make_folder(chosen.out)
    model, _ = load_speaker(chosen.model, chosen.device)
    facts = recalled(model, wanted)
    traced = trace_facts(model, facts[: chosen.trace.facts], chosen.trace)
    record = average_trace(traced, stage=Path(chosen.model).name)
    print(table(traced))
    if chosen.out is not None:
        write_json(chosen.out / "trace.json", asdict(record))
        draw(chosen.out, record, traced, trials)
        print(f"\nNumbers and heat maps: {chosen.out}")
    return 0


def recalled(model: GPT, facts: Sequence[Fact]) -> list[Fact]:
    """The facts whose true answer the model says; where there is nothing to lose there is nothing to restore."""
    known = [fact for fact, state in zip(facts, measure_facts(model, facts), strict=True) if state.true.rank == 1]
    say(f"{len(known)} of {len(facts)} facts are recalled (the answer's first token has rank 1).")
    if not known:
        raise UserError("the model recalls none of these facts, so there is nothing to trace.")
    return known


def table(traced: Sequence[Traced]) -> str:
    """The average effect in points of probability, with half the width of its interval."""
    blocks = []
    for site, grid in traced[0].effect.items():
        lines = [f"{f'{site}, layer':<18}" + "".join(f"{layer:>12}" for layer in range(grid.shape[1]))]
        for group in token_groups(traced):
            cells = [effect_at(traced, site, group, layer) for layer in range(grid.shape[1])]
            lines.append(f"{group:<18}" + "".join(f"{_points(cell):>12}" for cell in cells))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _points(cell: Interval) -> str:
    return f"{100 * cell.value:.1f} ±{50 * (cell.high - cell.low):.1f}"


def draw(folder: Path, record: AverageTrace, traced: Sequence[Traced], trials: Sequence[Trial]) -> None:
    """Every average heat map, and the overlay with a sweep, as SVG and PNG."""
    from nanogpt_edit.report.plots_edits import layers_picture, trace_pictures  # here, for it loads matplotlib

    pictures = trace_pictures(record)
    if trials:
        alone = {trial.layers[0]: trial.success for trial in trials if trial.step == "layers alone"}
        site: Site = "mlp_out" if "mlp_out" in traced[0].effect else next(iter(traced[0].effect))
        cells = [
            change_of_share([float(one.effect[site][one.subject_last, layer]) for one in traced])
            for layer in record.layers
        ]
        effect = [(cell.value, cell.low, cell.high) for cell in cells]
        pictures.append(layers_picture(record.layers, effect, alone, what=site))
    save_pictures(pictures, folder)
