"""What is drawn of the edits and the causal trace."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nanogpt_edit.editing.records import FactScore
from nanogpt_edit.report import labels
from nanogpt_edit.report.canvas import Picture, colour, draw
from nanogpt_edit.tracing.records import AverageTrace, Grid, TraceExample


def edit_pictures(facts: Sequence[FactScore]) -> list[Picture]:
    """Probability and rank of the new answer before and after, failures in their own colour."""
    if not facts:
        return []
    legend = (("accent", "new answer first"), ("bad", "not first"))
    return [
        draw(
            "edit-probability",
            lambda axes: _paint_probability(axes, facts),
            title="Probability of the new answer",
            caption="up: after; across: before",
            legend=legend,
            height=230,
            margins=(46, 8, 10, 42),
        ),
        draw(
            "edit-rank",
            lambda axes: _paint_rank(axes, facts),
            title="Rank of the new answer's first token",
            caption="one line per fact; 1 is first",
            legend=legend,
            height=230,
        ),
    ]


def _paint_probability(axes: Axes, facts: Sequence[FactScore]) -> None:
    for success, role, marker in ((True, "accent", "o"), (False, "bad", "X")):
        chosen = [fact for fact in facts if fact.success == success]
        before = [max(fact.p_target_before, 1e-9) for fact in chosen]
        after = [fact.p_target_after for fact in chosen]
        axes.scatter(before, after, s=22, marker=marker, color=colour(role), alpha=0.75, linewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda p, _: labels.power(p)))
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.text(1, -0.16, "before", transform=axes.transAxes, ha="right", va="top", color=colour("muted"))


def _paint_rank(axes: Axes, facts: Sequence[FactScore]) -> None:
    for success, role, alpha in ((True, "accent", 0.5), (False, "bad", 0.95)):  # failures last, on top
        chosen = [fact for fact in facts if fact.success == success]
        lines = [[(0, max(1, fact.rank_before)), (1, max(1, fact.rank_after))] for fact in chosen]
        axes.add_collection(LineCollection(lines, colors=[to_rgba(colour(role), alpha)], linewidths=1.0))
        ends = [end for line in lines for end in line]
        axes.scatter([x for x, _ in ends], [y for _, y in ends], s=7, color=colour(role), alpha=alpha, linewidth=0)
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank:,.0f}"))
    axes.xaxis.set_major_locator(FixedLocator([0, 1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "after" if x > 0.5 else "before"))
    axes.set_xlim(-0.12, 1.12)


def trace_pictures(trace: AverageTrace) -> list[Picture]:
    """The average heat map of every site, all on one scale, the subject's last token marked."""
    top = _largest(trace.indirect_effect)
    return [
        heat_map(
            _file_name("trace", site),
            trace.indirect_effect[site],
            rows=trace.token_groups,
            columns=trace.layers,
            top=top,
            title=site,
            marked=[group == "subject last" for group in trace.token_groups],
        )
        for site in trace.sites
    ]


def layers_picture(
    layers: Sequence[int],
    effect: Sequence[tuple[float, float, float]],
    success: Mapping[int, float],
    *,
    what: str,
) -> Picture:
    """Does tracing predict where an edit works? Per layer the indirect effect (value, low, high) at the subject's last
    token, and the share of edits of that layer alone that reach rank 1."""

    def paint(axes: Axes) -> None:
        axes.fill_between(
            layers, [low for _, low, _ in effect], [high for _, _, high in effect], color=colour("accent"), alpha=0.18
        )
        tried = sorted(set(success) & set(layers))
        values, reached = [value for value, _, _ in effect], [success[layer] for layer in tried]
        for x, y, role, marker, label in (
            (layers, values, "accent", "o", f"indirect effect of {what} at the subject's last token"),
            (tried, reached, "second", "s", "edits of this layer alone at rank 1"),
        ):
            axes.plot(x, y, color=colour(role), marker=marker, markersize=3.5, label=label, clip_on=False)
        axes.legend(frameon=False, labelcolor=colour("muted"), fontsize=9, loc="upper right")
        axes.text(0.5, -0.14, "layer", transform=axes.transAxes, ha="center", va="top", color=colour("muted"))
        axes.set_ylim(min(0.0, *(low for _, low, _ in effect)) - 0.02, 1.03)
        axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axes.xaxis.set_major_locator(FixedLocator(list(layers)[:: max(1, math.ceil(len(layers) / 12))]))

    return draw(
        "trace-layers",
        paint,
        title="Tracing and editing, layer by layer",
        caption="indirect effect with 95% interval; share of edits at rank 1",
        width=420,
        height=230,
        margins=(46, 14, 12, 38),
    )


def example_pictures(trace: AverageTrace) -> list[Picture]:
    """The same for the one prompt shown."""
    example = trace.example
    return [example_picture(_file_name("trace-example", site), example, site) for site in example.effect]


def example_picture(name: str, example: TraceExample, site: str) -> Picture:
    """The heat map of one site of one prompt, on the scale of all sites; the subject's tokens are marked."""
    grid = example.effect[site]
    return heat_map(
        name,
        grid,
        rows=[token_label(token) for token in example.tokens],
        columns=range(len(grid[0])),
        top=_largest(example.effect),
        title=site,
        marked=[place in example.subject_tokens for place in range(len(example.tokens))],
    )


def _file_name(kind: str, site: str) -> str:
    return kind + "-" + re.sub(r"\W+", "-", site)


def _largest(effect: Mapping[str, Grid]) -> float:
    return max((cell for grid in effect.values() for row in grid for cell in row), default=0.0)


def heat_map(
    name: str,
    grid: Grid,
    *,
    rows: Sequence[str],
    columns: Sequence[int],
    top: float,
    title: str,
    marked: Sequence[bool],
) -> Picture:
    """Rows of tokens down, layers across; the deeper the colour the larger the effect, another colour below zero."""

    def paint(axes: Axes) -> None:
        _paint_cells(axes, grid, top=top, with_text=len(columns) <= 8)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        step = max(1, math.ceil(len(columns) / 12))
        axes.xaxis.set_major_locator(FixedLocator(range(0, len(columns), step)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: str(columns[round(x)])))
        axes.yaxis.set_major_locator(NullLocator())
        for y, (row_name, bold) in enumerate(zip(rows, marked, strict=True)):
            axes.annotate(
                _clip(row_name, 17),
                xy=(0, y),
                xycoords=("axes fraction", "data"),
                xytext=(-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                weight="bold" if bold else "normal",
                color=colour("ink" if bold else "muted"),
            )

    cells = [(value, -y, -x) for y, row in enumerate(grid) for x, value in enumerate(row)]
    caption = ""
    if cells:
        value, y, x = max(cells)
        caption = f"largest: {labels.effect(value)} at {rows[-y]}, layer {columns[-x]}"
    return draw(name, paint, title=title, caption=caption, height=24.0 * len(rows) + 30, margins=(112, 6, 4, 26))


def _paint_cells(axes: Axes, grid: Grid, *, top: float, with_text: bool) -> None:
    boxes, colours = [], []
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            strength = 0.0 if top <= 0 else min(1.0, abs(value) / top)
            left, right, upper, lower = x - 0.48, x + 0.48, y - 0.46, y + 0.46
            boxes += [[(left, upper), (right, upper), (right, lower), (left, lower)]] * 2
            colours += [to_rgba(colour("rule"), 0.3), to_rgba(colour("accent" if value >= 0 else "bad"), strength)]
            if with_text:
                ink = colour("paper" if strength > 0.55 else "ink")
                axes.text(x, y, labels.effect(value), ha="center", va="center", fontsize=10, color=ink)
    axes.add_collection(PolyCollection(boxes, facecolors=colours, linewidths=0))


def token_label(token: str) -> str:
    """A token with its spaces and line ends made visible: ' Paris' -> '·Paris'."""
    marks = {"\n": "↵", " ": "·", "\t": "→"}
    return "".join(marks.get(c, c if c.isprintable() else "�") for c in token) or "(empty)"


def _clip(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
