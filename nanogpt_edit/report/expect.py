"""The recipe says what it expects; this file judges it.

`[expect]` maps a dotted path into summary.json to a bound:

    "stages.grpo.problems.well_formed" = ">= 0.98"
    "comparisons.grpo-sft.pass_at_1"   = "> 0"
    "edit.success"                     = ">= 0.96 (value)"
    "seconds.total"                    = "<= 360"

A quantity with an interval passes when the whole interval satisfies the bound, fails when the whole interval violates
it, and is inconclusive in between; then `n_needed` is the n at which an interval of this value would no longer reach
the bound (its half-width shrinks with the square root of n). Where so few problems could not pass even with a perfect
result (50 of 50 is at least 92.9%, so no 50 facts show 96%), it is undecidable, and `n_needed` is the n from which a
perfect result would pass. A line whose path or bound is wrong is judged "wrong", and says why. "(value)" judges the
value alone: for a census (50 of 50 edits) rather than a sample. A plain number is always judged by its value.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.stats import Z_TWO_SIDED
from nanogpt_edit.pipeline.records import STAGE_NAMES, timed
from nanogpt_edit.report.run import is_share

Judgement = Literal["pass", "fail", "inconclusive", "undecidable", "not measured", "wrong"]
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
    """One judged line of `[expect]`. `low`, `high`, `n` are None for a plain number; `n_needed` only when not decided.

    verdict: pass, fail, inconclusive, undecidable (not with this n), "not measured" (the run has not come to that
    stage), or "wrong" (the line itself, for the `reason`).
    """

    metric: str
    bound: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    verdict: Judgement
    n_needed: int | None
    reason: str = ""


def parse_bound(text: object, *, key: str) -> Bound:
    """'>= 0.98' or '<= 0.05 (value)'. Raises UserError naming the key of `[expect]`."""
    found = BOUND.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise UserError(
            f'[expect] "{key}": {text!r} is not a bound. Write one of >=, <=, >, < and a number, such as ">= 0.98"; '
            'add "(value)" to judge the value without its interval.'
        )
    return Bound(operator=found[1], limit=float(found[2]), by_value=found[3] is not None)


def judge(
    expect: Mapping[str, object], summary: Mapping[str, object], planned: Sequence[str] = STAGE_NAMES
) -> tuple[Expectation, ...]:
    """Judge every line of a recipe's `[expect]` table against the contents of summary.json.

    A line that is malformed, or whose path leads nowhere, is judged "wrong", unless it leads to a stage of those
    `planned` that this run has not come to.
    """
    return tuple(_judge_or_say_why(key, text, summary, planned) for key, text in _flat(expect))


def check_expectations(expect: Mapping[str, object], known: Collection[str]) -> None:
    """Raise UserError for the first line of `[expect]` with a malformed bound or a path that is not `known`."""
    for key, text in _flat(expect):
        parse_bound(text, key=key)
        if key not in known:
            raise _unknown(key, known)


def _judge_or_say_why(key: str, text: object, summary: Mapping[str, object], planned: Sequence[str]) -> Expectation:
    try:
        return _judge_one(key, text, summary, planned)
    except UserError as error:
        return Expectation(key, str(text).strip(), None, None, None, None, "wrong", None, str(error))


def _flat(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """TOML reads an unquoted dotted key as nested tables; both spellings mean the same path."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _judge_one(key: str, text: object, summary: Mapping[str, object], planned: Sequence[str]) -> Expectation:
    bound = parse_bound(text, key=key)
    shown = str(text).strip()
    found = _look_up(key, summary, planned)
    if found is None:
        return Expectation(key, shown, None, None, None, None, "not measured", None)
    value, low, high, n = found
    if bound.by_value or low is None or high is None:
        verdict: Judgement = "pass" if bound.holds(value) else "fail"
        return Expectation(key, shown, value, low, high, n, verdict, None)
    if bound.holds(low) and bound.holds(high):
        verdict = "pass"
    elif not bound.holds(low) and not bound.holds(high):
        verdict = "fail"
    elif (enough := _n_of_a_perfect_result(key, bound)) is not None and n is not None and n < enough:
        return Expectation(key, shown, value, low, high, n, "undecidable", enough)
    else:
        return Expectation(key, shown, value, low, high, n, "inconclusive", _n_needed(bound, value, low, high, n))
    return Expectation(key, shown, value, low, high, n, verdict, None)


def _n_of_a_perfect_result(key: str, bound: Bound) -> int | None:
    """The n from which all (or none) of n problems satisfy the bound with their whole interval; None if any n does.

    n of n is at least n / (n + z²), none of n at most z² / (n + z²).
    """
    if not is_share(key) or key.startswith(("comparisons.", "seconds.")) or not 0.0 < bound.limit < 1.0:
        return None
    least = bound.limit if bound.operator in (">", ">=") else 1 - bound.limit
    return math.ceil(Z_TWO_SIDED**2 * least / (1 - least)) if least < 1 else None


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


def _look_up(key: str, summary: Mapping[str, object], planned: Sequence[str]) -> Quantity | None:
    """The quantity at a dotted path; None when it belongs to a stage that has not run."""
    node: object = summary
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, Mapping) or part not in node:
            if _awaits(parts[:depth], part, node, summary, planned):
                return None
            raise _unknown(key, list(_paths(summary)))
        node = node[part]
    if is_number(node):
        return float(node), None, None, None
    quantity = _as_quantity(node)
    if quantity is None:
        if node is None:
            return None
        raise _unknown(key, list(_paths(summary)))
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


def is_number(value: object) -> TypeGuard[int | float]:
    """A finite number that is not a flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _awaits(path: list[str], part: str, node: object, summary: Mapping[str, object], planned: Sequence[str]) -> bool:
    """Whether `part` is missing at `path` only because the run has not come that far."""
    stages = summary.get("stages")
    done = set(stages) if isinstance(stages, Mapping) else set()
    if path == ["stages"]:
        return part in planned
    if path == ["comparisons"]:
        pair = set(part.split("-"))
        return pair <= set(planned) | done and not pair <= done
    if path == ["edit"]:
        return "edited" in planned and (node is None or part in ("known", "unknown"))
    if path == ["seconds"]:
        return not node or part in timed(planned)
    return False


def _unknown(key: str, known: Collection[str]) -> UserError:
    near = difflib.get_close_matches(key, list(known), n=3, cutoff=0.5) or sorted(known)[:3]
    hint = " Nearest: " + ", ".join(near) + "." if near else ""
    return UserError(f'[expect] "{key}": there is no such number in summary.json.{hint}')


def _paths(node: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if is_number(value) or _as_quantity(value) is not None:
            yield prefix + key
        elif isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")
