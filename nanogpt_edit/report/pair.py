"""Two runs beside each other: what was compared in pairs, what could not be, for a terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nanogpt_edit.common.stats import Difference, Interval
from nanogpt_edit.report import labels

STYLES = {"better": "green", "worse": "red", "changed": "default", "inconclusive": "dim"}


@dataclass(frozen=True, slots=True)
class Compared:
    """One measure of both runs, and the change from A to B in pairs."""

    metric: str
    label: str
    first: Interval
    second: Interval
    change: Difference

    @property
    def shown(self) -> tuple[str, str, str, str]:
        """A, B, B − A and its interval, as a reader sees them."""
        metric, change = self.metric, self.change
        return (
            labels.quantity(metric, self.first.value),
            labels.quantity(metric, self.second.value),
            labels.signed(metric, change.delta) + labels.unit(metric),
            labels.change_span(metric, change),
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A checkpoint of both runs, or their edits."""

    title: str
    rows: tuple[Compared, ...]

    @property
    def told(self) -> str:
        """'B is better at problems pass@1 (47.4% → 52.0%); nothing else could be shown.'"""
        sentences = []
        for verdict in ("better", "worse"):
            found = [row for row in self.rows if row.change.verdict == verdict]
            if found:
                named = [f"{row.label} ({row.shown[0]} → {row.shown[1]})" for row in found]
                sentences.append(f"B is {verdict} at {labels.listing(named)}.")
        open_ones = sum(row.change.verdict == "inconclusive" for row in self.rows)
        rest = f"{labels.count(open_ones, 'measure')} of {len(self.rows)} inconclusive."
        return " ".join([*(sentences or ["No difference could be shown."]), rest])


@dataclass(frozen=True, slots=True)
class RunPair:
    """Two runs, A and B, on the same problems and facts."""

    paths: tuple[str, str]
    took: tuple[str, str]
    """How long each took in all; empty where nobody measured it."""
    parts: tuple[Part, ...]
    set_apart: tuple[tuple[str, str, str], ...]
    """Settings and versions that differ: (name, in A, in B)."""
    notes: tuple[str, ...]
    """What could not be compared, or only with care, a sentence each."""


def pair_table(pair: RunPair) -> RenderableType:
    """All of it for a terminal."""
    a, b = (path + (f", {took}" if took else "") for path, took in zip(pair.paths, pair.took, strict=True))
    shown: list[RenderableType] = [Text(f"A: {a}\nB: {b}")]
    for part in pair.parts:
        shown += [Text(f"\n{part.title}", style="bold"), _table(part.rows)]
    marks = "▲ B is better  ▼ B is worse  ◆ other  ≈ inconclusive, in pairs on the same problems or facts"
    return Group(*shown, Text(marks, style="dim"), *(Text(note) for note in pair.notes))


def _table(rows: Sequence[Compared]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "A", "B", "B − A", "95% interval", "p", "n"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    table.add_column("", overflow="fold")
    for row in rows:
        change = row.change
        verdict = Text(f"{labels.ARROWS[change.verdict]} {change.verdict}", style=STYLES[change.verdict])
        table.add_row(row.label, *row.shown, labels.p_value(change.p_value), f"{change.n:,}", verdict)
    return table
