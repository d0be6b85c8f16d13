"""The edits of a run and its causal trace -> `Edit`, `Trace`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from nanogpt_edit.common.stats import Interval
from nanogpt_edit.report.fields import Fields, is_number, read_interval, read_lines, read_object
from nanogpt_edit.report.records import Edit, EditedFact, Grid, Trace, TraceExample


def read_edit(folder: Path) -> Edit | None:
    """The first edit by name. (A run makes one; `trace.json` lies in the same folder.)"""
    paths = sorted(path for path in folder.glob("*.json") if path.name != "trace.json")
    if not paths:
        return None
    fields = read_object(paths[0])
    settings = fields.optional_inner("settings")
    return Edit(
        name=paths[0].stem,
        n=fields.integer("n"),
        method=fields.text("method"),
        layers=tuple(map(int, fields.numbers("layers"))),
        seconds=fields.number("seconds"),
        scores=_read_scores(fields),
        settings=settings.values if settings else {},
        facts=_read_edited_facts(paths[0].with_suffix(".jsonl")),
    )


def _read_scores(fields: Fields) -> Mapping[str, Interval | float]:
    scores: dict[str, Interval | float] = {}
    for key, value in fields.values.items():
        if key in ("n", "seconds", "settings", "method", "layers"):
            continue
        if is_number(value):
            scores[key] = fields.number(key)
        elif isinstance(value, dict) and (interval := read_interval(fields, key)) is not None:
            scores[key] = interval
    return scores


def _read_edited_facts(path: Path) -> tuple[EditedFact, ...]:
    facts = []
    for fields in read_lines(path):
        facts.append(
            EditedFact(
                id=fields.text("id", ""),
                relation=fields.text("relation", ""),
                prompt=fields.text("prompt"),
                subject=fields.text("subject"),
                target_true=fields.text("target_true", ""),
                target_new=fields.text("target_new"),
                old_answer=fields.text("old_answer", ""),
                new_answer=fields.text("new_answer", ""),
                p_first_before=fields.number("p_first_before"),
                p_first_after=fields.number("p_first_after"),
                rank_before=fields.integer("rank_before"),
                rank_after=fields.integer("rank_after"),
                p_target_before=fields.number("p_target_before"),
                p_target_after=fields.number("p_target_after"),
                success=fields.flag("success"),
                efficacy=fields.optional_share("efficacy") or 0.0,
                paraphrase=fields.optional_share("paraphrase_success"),
                neighbourhood_before=fields.optional_share("neighbourhood_before"),
                neighbourhood_after=fields.optional_share("neighbourhood_after"),
                contains=fields.flag("contains")
                if "contains" in fields.values
                else fields.text("target_new") in fields.text("new_answer", ""),
                subject_lookup=fields.text("subject_lookup", ""),
                reason=fields.text("reason", ""),
                exact=fields.flag("exact") if "exact" in fields.values else None,
                paraphrase_rank1=fields.optional_share("paraphrase_rank1"),
            )
        )
    return tuple(facts)


def read_trace(path: Path) -> Trace | None:
    if not path.exists():
        return None
    fields = read_object(path)
    sites = tuple(str(site) for site in fields.items("sites"))
    groups = tuple(str(group) for group in fields.items("token_groups"))
    layers = tuple(map(int, fields.numbers("layers")))
    shape = (len(groups), len(layers))
    low, high = fields.optional_inner("low"), fields.optional_inner("high")
    example = fields.optional_inner("example")
    return Trace(
        n=fields.integer("n"),
        stage=fields.text("stage", ""),
        sites=sites,
        token_groups=groups,
        layers=layers,
        effect={site: _read_grid(fields.inner("indirect_effect"), site, shape) for site in sites},
        low={site: _read_grid(low, site, shape) for site in sites} if low else {},
        high={site: _read_grid(high, site, shape) for site in sites} if high else {},
        clean_p=fields.optional_number("clean_p"),
        corrupted_p=fields.optional_number("corrupted_p"),
        example=_read_trace_example(example, sites, len(layers)) if example else None,
    )


def _read_trace_example(fields: Fields, sites: tuple[str, ...], n_layer: int) -> TraceExample:
    tokens = tuple(str(token) for token in fields.items("tokens"))
    effect = fields.inner("effect")
    shape = (len(tokens), n_layer)
    return TraceExample(
        tokens=tokens,
        subject_tokens=tuple(map(int, fields.numbers("subject_tokens"))),
        effect={site: _read_grid(effect, site, shape) for site in sites if site in effect.values},
    )


def _read_grid(fields: Fields, key: str, shape: tuple[int, int]) -> Grid:
    """A (tokens, layers) grid; null (a group no prompt has) becomes NaN."""
    rows = []
    for row in fields.items(key):
        if not isinstance(row, list) or not all(cell is None or is_number(cell) for cell in row):
            raise fields.error(key, "rows of numbers")
        rows.append(tuple(math.nan if cell is None else float(cell) for cell in row))
    if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
        raise fields.error(key, f"a grid of {shape[0]} rows and {shape[1]} columns")
    return tuple(rows)
