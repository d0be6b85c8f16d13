"""What is drawn of the training and the evaluation: learning curves, pass@k, problems by right answers.

A picture is left out when the run folder does not hold its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator, NullLocator

from nanogpt_edit.evaluation.records import Evaluation
from nanogpt_edit.report import labels
from nanogpt_edit.report.canvas import Picture, colour, draw
from nanogpt_edit.report.run import Run, Series

MOST_POINTS = 300


@dataclass(frozen=True, slots=True)
class Panel:
    """One small multiple: columns of one log. `lines` are (column, label, role); "val" columns are drawn with dots."""

    log: str
    name: str
    title: str
    lines: tuple[tuple[str, str, str], ...]
    share: bool = False
    note: str = ""


TRAIN_AND_VALIDATION = (("loss", "train", "accent"), ("val_loss", "validation", "second"))
ACCURACY = (("accuracy", "rollouts", "accent"), ("val_pass_at_1", "validation pass@1", "second"))
CLIPPED = (("clip_low_share", "at the lower bound", "accent"), ("clip_high_share", "at the upper bound", "second"))
PANELS = (
    Panel("pretrain", "pretrain-loss", "Pretraining loss", TRAIN_AND_VALIDATION, note="nats per token"),
    Panel("sft", "sft-loss", "SFT loss", TRAIN_AND_VALIDATION, note="nats per completion token"),
    Panel("grpo", "grpo-accuracy", "GRPO accuracy", ACCURACY, share=True),
    Panel("grpo", "grpo-reward", "GRPO reward", (("reward", "mean of the step", "accent"),)),
    Panel("grpo", "grpo-well-formed", "Well-formed", (("well_formed", "rollouts", "accent"),), share=True),
    Panel("grpo", "grpo-entropy", "Entropy", (("entropy", "policy", "accent"),), note="nats per token"),
    Panel("grpo", "grpo-kl", "KL to the SFT model", (("kl", "policy", "accent"),), note="nats per token"),
    Panel("grpo", "grpo-clipped", "Clipped tokens", CLIPPED, share=True),
    Panel("grpo", "grpo-groups", "Groups dropped", (("groups_dropped", "all rewards equal", "accent"),), share=True),
    Panel("grpo", "grpo-length", "Completion length", (("mean_tokens", "mean", "accent"),), note="tokens"),
    Panel("grpo", "grpo-truncated", "Truncated completions", (("truncated", "rollouts", "accent"),), share=True),
    Panel("grpo", "grpo-gap", "Sampler gap", (("sampler_gap", "max |log ρ| at the first update", "accent"),)),
    Panel("grpo", "grpo-gradient", "Gradient norm", (("grad_norm", "before clipping", "accent"),)),
)


def learning_curves(logs: Mapping[str, Mapping[str, Series]]) -> list[Picture]:
    """Small multiples of a run's training logs, in the order of PANELS."""
    pictures = []
    for panel in PANELS:
        log = logs.get(panel.log, {})
        lines = [(log[column], label, role, column) for column, label, role in panel.lines if column in log]
        if lines:
            pictures.append(_curve(panel, lines))
    return pictures


def _curve(panel: Panel, lines: Sequence[tuple[Series, str, str, str]]) -> Picture:
    every = [value for series, *_ in lines for value in series.values]
    left = 60.0 if max(map(abs, every)) < 1e-3 else 46  # pixels: room for 1.2·10⁻⁵

    def paint(axes: Axes) -> None:
        for series, _, role, column in lines:
            steps, values = numpy.asarray(series.steps), numpy.asarray(series.values)
            if column.startswith("val"):
                axes.plot(steps, values, color=colour(role), marker="o", markersize=3.2)
                continue
            smooth = rolling_mean(values, window=max(1, len(values) // 20))
            pick = numpy.unique(numpy.linspace(0, len(steps) - 1, min(len(steps), MOST_POINTS)).astype(int))
            axes.plot(steps[pick], values[pick], color=colour(role), linewidth=0.9, alpha=0.35)
            axes.plot(steps[pick], smooth[pick], color=colour(role))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick if panel.share else _number_tick))
        middle = sum(every) / len(every)
        if max(every) - min(every) <= 1e-6 * abs(middle):  # a flat line stands in the middle, not in rounding noise
            axes.set_ylim(middle - (abs(middle) or 1) / 2, middle + (abs(middle) or 1) / 2)

    shown = labels.percent if panel.share else labels.number
    legend = tuple(
        (role, f"{label} {shown(_start(series))} → {shown(_end(series))}") for series, label, role, _ in lines
    )
    margins = (left, 8, 10, 24)
    return draw(panel.name, paint, title=panel.title, caption=panel.note, legend=legend, margins=margins)


def rolling_mean(values: numpy.ndarray, *, window: int) -> numpy.ndarray:
    """Centred mean over `window` values either side, over fewer at the ends; same length as `values`."""
    sums = numpy.concatenate([[0.0], numpy.cumsum(values)])
    place = numpy.arange(len(values))
    start, stop = numpy.maximum(place - window, 0), numpy.minimum(place + window + 1, len(values))
    return numpy.asarray((sums[stop] - sums[start]) / (stop - start))


def _start(series: Series) -> float:
    """Mean of the first tenth: single steps are noisy."""
    return float(numpy.mean(series.values[: max(1, len(series.values) // 10)]))


def _end(series: Series) -> float:
    return float(numpy.mean(series.values[-max(1, len(series.values) // 10) :]))


def _percent_tick(value: float, _: int | None = None) -> str:
    return f"{100 * value:.3g}%"


def _number_tick(value: float, _: int | None = None) -> str:
    if 0 < abs(value) < 1e-4:
        return labels.scientific(value, digits=3)
    return f"{value:,.6g}".replace("-", "−")


def pass_at_k(run: Run) -> Picture | None:
    """pass@k against k, one line per checkpoint, with its 95% band."""
    curves = {stage.stage: points for stage in run.stages.values() if len(points := _pass_points(stage)) >= 3}
    if not curves:
        return None

    def paint(axes: Axes) -> None:
        for name, points in curves.items():
            ks = [k for k, _, _, _ in points]
            axes.fill_between(
                ks, [low for *_, low, _ in points], [p[3] for p in points], color=colour(name), alpha=0.15, linewidth=0
            )
            axes.plot(ks, [value for _, value, _, _ in points], color=colour(name), marker="o", markersize=3.2)
        ticks = sorted({k for points in curves.values() for k, *_ in points})
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))

    legend = tuple((name, labels.stage_label(name)) for name in curves)
    return draw("pass-at-k", paint, title="Solved by at least one of k samples", caption="95% bands", legend=legend)


def _pass_points(stage: Evaluation) -> list[tuple[int, float, float, float]]:
    metrics = stage.metrics.get("problems", {})
    found = [
        (int(name[8:]), metric)
        for name, metric in metrics.items()
        if name.startswith("pass_at_") and name[8:].isdigit()
    ]
    return sorted((k, metric.value, metric.low, metric.high) for k, metric in found)


def solved_counts(run: Run) -> Picture | None:
    """How many problems are solved by c of the n samples: where the mass moved."""
    counts = {stage.stage: _correct_counts(stage) for stage in run.stages.values()}
    samples = max((len(values) for values in counts.values()), default=0) - 1
    counts = {name: values for name, values in counts.items() if sum(values[1:]) and len(values) == samples + 1}
    if not counts:
        return None

    def paint(axes: Axes) -> None:
        for place, (name, values) in enumerate(counts.items()):
            width = 0.84 / len(counts)
            where = numpy.arange(len(values)) - 0.42 + (place + 0.5) * width
            axes.bar(where, numpy.asarray(values) / sum(values), width=width, color=colour(name), linewidth=0)
        axes.xaxis.set_major_locator(MultipleLocator(max(1, samples // 4)))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))

    return draw(
        "solved-counts",
        paint,
        title=f"Problems by right answers out of {samples}",
        caption="left: never solved; right: always solved",
        legend=tuple((name, labels.stage_label(name)) for name in counts),
    )


def _correct_counts(stage: Evaluation) -> list[int]:
    right: dict[str, int] = {}
    samples: dict[str, int] = {}
    for completion in stage.records:
        if completion.skill == "problems":
            right[completion.problem_id] = right.get(completion.problem_id, 0) + completion.correct
            samples[completion.problem_id] = samples.get(completion.problem_id, 0) + 1
    counts = [0] * (max(samples.values(), default=0) + 1)
    for count in right.values():
        counts[count] += 1
    return counts
