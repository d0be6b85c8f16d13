"""How the verbs show numbers in a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass

from rich.console import Console, JustifyMethod, RenderableType
from rich.table import Table

from nanogpt_edit.common.stats import Difference, Interval
from nanogpt_edit.report.labels import ARROWS


def show_metrics(metrics: Mapping[str, Mapping[str, Interval]]) -> None:
    """Every metric of every skill with its 95% interval, on standard output."""
    table = _table("skill", "metric", "value", "95% interval", "n")
    for skill, own in metrics.items():
        for name, found in own.items():
            bounds = f"{number(found.low)} to {number(found.high)}"
            table.add_row(skill, name, number(found.value), bounds, f"{found.n:,}")
    show(table)


def show_differences(differences: Mapping[str, Difference]) -> None:
    """Every paired difference with its 95% interval and verdict, on standard output."""
    table = _table("metric", "after − before", "95% interval", "p", "n", "smallest detectable", "verdict")
    for name, found in differences.items():
        table.add_row(
            name,
            f"{found.delta:+.4g}",
            f"{found.low:+.4g} to {found.high:+.4g}",
            f"{found.p_value:.2g}",
            f"{found.n:,}",
            number(found.smallest_detectable),
            marked(found),
        )
    show(table)


def show_json(value: object) -> None:
    """On standard output, for a program; what is no JSON (NaN) is null."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def marked(change: Difference) -> str:
    """Its verdict: '▲ better'; where neither side is better, '◆ more' or '◆ less'."""
    word = change.verdict if change.verdict != "changed" else "more" if change.delta > 0 else "less"
    return f"{ARROWS[change.verdict]} {word}"


def number(value: float) -> str:
    """0.67812 -> '0.6781'."""
    return f"{value:.4g}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        side: JustifyMethod = "left" if column in ("skill", "metric", "verdict") else "right"
        table.add_column(column, justify=side, overflow="fold")  # in a narrow terminal on more lines, never cut
    return table


def show(what: RenderableType) -> None:
    """On standard output, as wide as the terminal; a pipe cuts and wraps nothing."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(what)
