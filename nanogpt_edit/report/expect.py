"""The recipe says what it expects; this file judges it.

`[expect]` maps a dotted path into summary.json to a bound:

    "stages.grpo.problems.well_formed" = ">= 0.98"
    "comparisons.grpo-sft.pass_at_1"   = "> 0"
    "edit.success"                     = ">= 0.96 (value)"
    "seconds.total"                    = "<= 360"

A quantity with an interval passes when the whole interval satisfies the bound, fails when the whole interval violates
it, and is inconclusive in between; then `n_needed` is the n at which an interval of this value would no longer reach
the bound (its half-width shrinks with the square root of n). "(value)" judges the value alone: for a census (50 of 50
edits) rather than a sample. A plain number is always judged by its value.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from nanogpt_edit.errors import UserError
from nanogpt_edit.report.fields import is_number
from nanogpt_edit.report.records import STAGES

Verdict = Literal["pass", "fail", "inconclusive", "not measured"]
BOUND = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?:\(?(value|point)\)?)?\s*")


LARGEST_RATIO = 1e4
"""Half-width over distance to the bound beyond which the n that would decide helps nobody (n times 10^8)."""


@dataclass(frozen=True, slots=True)
class Bound:
    """`operator` and `limit`; `by_value` ignores the interval."""

    operator: str
    limit: float
    by_value: bool

    def holds(self, value: float) -> bool:
        return {
            ">=": value >= self.limit,
            "<=": value <= self.limit,
            ">": value > self.limit,
            "<": value < self.limit,
        }[self.operator]


@dataclass(frozen=True, slots=True)
class Expectation:
    """One judged line of `[expect]`. `low`, `high`, `n` are None for a plain number; `n_needed` only when inconclusive.

    verdict: pass, fail, inconclusive, or "not measured" (the run has not come to that stage).
    """

    metric: str
    bound: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    verdict: Verdict
    n_needed: int | None


def parse_bound(text: object, *, key: str) -> Bound:
    """'>= 0.98' or '<= 0.05 (value)'. Raises UserError naming the key of `[expect]`."""
    found = BOUND.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise UserError(
            f'[expect] "{key}": {text!r} is not a bound. Write one of >=, <=, >, < and a number, such as ">= 0.98"; '
            'add "(value)" to judge the value without its interval.'
        )
    return Bound(operator=found[1], limit=float(found[2]), by_value=found[3] is not None)


def judge(expect: Mapping[str, object], summary: Mapping[str, object]) -> tuple[Expectation, ...]:
    """Judge every line of a recipe's `[expect]` table against the contents of summary.json.

    Raises UserError naming the key for a malformed bound, and for a path that leads nowhere (with the nearest that
    exist), unless it leads to a stage this run has not come to.
    """
    return tuple(_judge_one(key, text, summary) for key, text in _flat(expect))


def _flat(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """TOML reads an unquoted dotted key as nested tables; both spellings mean the same path."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _judge_one(key: str, text: object, summary: Mapping[str, object]) -> Expectation:
    bound = parse_bound(text, key=key)
    shown = str(text).strip()
    found = _look_up(key, summary)
    if found is None:
        return Expectation(key, shown, None, None, None, None, "not measured", None)
    value, low, high, n = found
    if bound.by_value or low is None or high is None:
        verdict: Verdict = "pass" if bound.holds(value) else "fail"
        return Expectation(key, shown, value, low, high, n, verdict, None)
    if bound.holds(low) and bound.holds(high):
        verdict = "pass"
    elif not bound.holds(low) and not bound.holds(high):
        verdict = "fail"
    else:
        verdict = "inconclusive"
    n_needed = _n_needed(bound, value, low, high, n) if verdict == "inconclusive" else None
    return Expectation(key, shown, value, low, high, n, verdict, n_needed)


def _n_needed(bound: Bound, value: float, low: float, high: float, n: int | None) -> int | None:
    """The n at which the end of the interval that faces the bound would stand on the value's own side of it.

    None when the value stands on the bound, or so near that no practicable n decides, or n is unknown.
    """
    distance = abs(value - bound.limit)
    half_width = value - low if value > bound.limit else high - value
    if n is None or half_width > distance * LARGEST_RATIO:
        return None
    return max(n + 1, math.ceil(n * (half_width / distance) ** 2))


Quantity = tuple[float, float | None, float | None, int | None]


def _look_up(key: str, summary: Mapping[str, object]) -> Quantity | None:
    """The quantity at a dotted path; None when it belongs to a stage that has not run."""
    node: object = summary
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, Mapping) or part not in node:
            if _awaits(parts[:depth], part, node, summary):
                return None
            raise _unknown(key, summary)
        node = node[part]
    if is_number(node):
        return float(node), None, None, None
    quantity = _as_quantity(node)
    if quantity is None:
        if node is None:
            return None
        raise _unknown(key, summary)
    return quantity


def _as_quantity(node: object) -> Quantity | None:
    """{value or delta, low, high, n} -> the four of them; None for anything else."""
    if not isinstance(node, Mapping):
        return None
    value: object = node.get("value", node.get("delta"))
    low, high, n = node.get("low"), node.get("high"), node.get("n")
    if not is_number(value):
        return None
    return (
        float(value),
        float(low) if is_number(low) else None,
        float(high) if is_number(high) else None,
        int(n) if is_number(n) else None,
    )


def _awaits(path: list[str], part: str, node: object, summary: Mapping[str, object]) -> bool:
    """Whether `part` is missing at `path` only because the run has not come that far."""
    stages = summary.get("stages")
    done = set(stages) if isinstance(stages, Mapping) else set()
    if path == ["stages"]:
        return part in STAGES
    if path == ["comparisons"]:
        pair = set(part.split("-"))
        return pair <= set(STAGES) | done and not pair <= done
    if path == ["edit"]:
        return node is None
    if path == ["seconds"]:
        return (
            not node or part in STAGES or part.startswith("evaluate_") or part in ("world", "edit", "trace", "report")
        )
    return False


def _unknown(key: str, summary: Mapping[str, object]) -> UserError:
    names = list(_paths(summary))
    near = difflib.get_close_matches(key, names, n=3, cutoff=0.5) or names[:3]
    hint = " Nearest: " + ", ".join(near) + "." if near else ""
    return UserError(f'[expect] "{key}": there is no such number in summary.json.{hint}')


def _paths(node: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if is_number(value) or _as_quantity(value) is not None:
            yield prefix + key
        elif isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")
