"""What tracing leaves in `edits/trace.json`, as the report reads it too (so nothing here needs torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nanogpt_edit.common.errors import UserError

Grid = tuple[tuple[float, ...], ...]
"""Rows of numbers: one row per token (or kind of token), one column per layer."""


@dataclass(frozen=True)
class TraceExample:
    """The trace of one prompt: `effect[site]` has one row per token."""

    tokens: tuple[str, ...]
    subject_tokens: tuple[int, ...]
    effect: Mapping[str, Grid]


@dataclass(frozen=True)
class AverageTrace:
    """The traces of `n` facts, averaged: grids per site, of one row per kind of token, with their 95% intervals."""

    n: int
    stage: str
    sites: tuple[str, ...]
    token_groups: tuple[str, ...]
    layers: tuple[int, ...]
    indirect_effect: Mapping[str, Grid]
    """Probability of the answer that restoring one state brings back."""
    low: Mapping[str, Grid]
    high: Mapping[str, Grid]
    clean_p: float
    corrupted_p: float
    example: TraceExample

    def __post_init__(self) -> None:
        groups, columns = len(self.token_groups), len(self.layers)
        for field, grids, rows in (
            ("indirect_effect", self.indirect_effect, groups),
            ("low", self.low, groups),
            ("high", self.high, groups),
            ("example.effect", self.example.effect, len(self.example.tokens)),
        ):
            shapes = {site: [len(row) for row in grid] for site, grid in grids.items()}
            if shapes != {site: [columns] * rows for site in self.sites}:
                sites = ", ".join(self.sites)
                raise UserError(f"must have a grid of {rows} rows and {columns} columns for {sites}.", field=field)
