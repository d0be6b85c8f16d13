"""Causal traces of many facts -> one average with intervals, by kind of token: the contents of edits/trace.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.stats import Interval, change_of_share
from nanogpt_edit.tracing.config import Site
from nanogpt_edit.tracing.records import AverageTrace, Grid
from nanogpt_edit.tracing.tracing import Traced

TOKEN_GROUPS = ("before subject", "subject first", "subject middle", "subject last", "after", "last")


def average_trace(traced: Sequence[Traced], *, stage: str) -> AverageTrace:
    """The average indirect effect per site, kind of token and layer, with 95% intervals over facts, and one example.

    The example is the fact whose corruption cost the most. A kind of token that no fact has is left out.
    Raises UserError when there is nothing to average.
    """
    if not traced:
        raise UserError("there are no traces to average; trace at least one fact.")
    groups = token_groups(traced)
    layers = range(next(iter(traced[0].effect.values())).shape[1])
    cells = {
        site: [[effect_at(traced, site, group, layer) for layer in layers] for group in groups]
        for site in traced[0].effect
    }

    def grids(end: Callable[[Interval], float]) -> dict[str, Grid]:
        return {site: tuple(tuple(map(end, row)) for row in rows) for site, rows in cells.items()}

    example = max(traced, key=lambda one: one.total_effect)
    return AverageTrace(
        n=len(traced),
        stage=stage,
        sites=tuple(cells),
        token_groups=tuple(groups),
        layers=tuple(layers),
        indirect_effect=grids(lambda cell: cell.value),
        low=grids(lambda cell: cell.low),
        high=grids(lambda cell: cell.high),
        clean_p=float(np.mean([one.clean_p for one in traced])),
        corrupted_p=float(np.mean([one.corrupted_p for one in traced])),
        example=example.as_example(),
    )


def token_groups(traced: Sequence[Traced]) -> list[str]:
    """The kinds of tokens that at least one of the prompts has, in the order of the table."""
    return [group for group in TOKEN_GROUPS if any(group in kinds_of_tokens(one) for one in traced)]


def kinds_of_tokens(one: Traced) -> dict[str, list[int]]:
    """Which tokens of a prompt are of which kind. The last token of the prompt is "last" whatever else it is."""
    kinds: dict[str, list[int]] = {}
    final = len(one.tokens) - 1
    for place in range(len(one.tokens)):
        if place == final:
            kind = "last"
        elif place < one.subject_first:
            kind = "before subject"
        elif place == one.subject_last:
            kind = "subject last"
        elif place > one.subject_last:
            kind = "after"
        else:
            kind = "subject first" if place == one.subject_first else "subject middle"
        kinds.setdefault(kind, []).append(place)
    return kinds


def effect_at(traced: Sequence[Traced], site: Site, group: str, layer: int) -> Interval:
    """Mean indirect effect over the facts that have such a token; a fact's tokens of one kind are averaged first."""
    means = [
        float(one.effect[site][places, layer].mean()) for one in traced if (places := kinds_of_tokens(one).get(group))
    ]
    if means and not any(means):  # before the subject, by causality; not a share whose interval has a width
        return Interval(value=0.0, low=0.0, high=0.0, n=len(means))
    return change_of_share(means)
