"""What a run folder says, as frozen records: the only thing the other files of this room look at.

`read.py` fills them from the files; nothing here opens a file or judges a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nanogpt_edit.common.stats import Interval
from nanogpt_edit.evaluation.records import Comparison, Evaluation, Transcript

STAGES = ("base", "sft", "grpo", "edited")
"""The checkpoints of a run in the order they are made. A run may hold any part of them."""

SIZES = re.compile(r"tokens|seconds|perplexity|nats|length|bits|mean_|entropy$|rank$")

Grid = tuple[tuple[float, ...], ...]
"""Rows of numbers: one row per token (or group of tokens), one column per layer."""


@dataclass(frozen=True, slots=True)
class EditedFact:
    """One fact before and after the edit. Neighbourhood and paraphrase are shares of that fact's prompts, 0 to 1.

    `success`: the new answer's first token is at rank 1; `exact`: the greedy text is the new answer and nothing more
    (None in records of version 0.1.0); `contains`: it holds the new answer.
    """

    id: str
    relation: str
    prompt: str
    subject: str
    target_true: str
    target_new: str
    old_answer: str
    new_answer: str
    p_first_before: float
    p_first_after: float
    rank_before: int
    rank_after: int
    p_target_before: float
    p_target_after: float
    success: bool
    efficacy: float
    paraphrase: float | None
    neighbourhood_before: float | None
    neighbourhood_after: float | None
    contains: bool
    subject_lookup: str
    reason: str
    exact: bool | None = None
    paraphrase_rank1: float | None = None

    @property
    def right(self) -> bool:
        """Whether the model writes the new answer, as far as the record tells."""
        return self.success and (self.contains if self.exact is None else self.exact)


@dataclass(frozen=True, slots=True)
class Edit:
    """One batch of edits: aggregate `scores` (an Interval, or a plain number) and one record per fact."""

    name: str
    n: int
    method: str
    layers: tuple[int, ...]
    seconds: float
    scores: Mapping[str, Interval | float]
    settings: Mapping[str, object]
    facts: tuple[EditedFact, ...]


@dataclass(frozen=True, slots=True)
class TraceExample:
    """The causal trace of one prompt: `effect[site]` has one row per token."""

    tokens: tuple[str, ...]
    subject_tokens: tuple[int, ...]
    effect: Mapping[str, Grid]


@dataclass(frozen=True, slots=True)
class Trace:
    """Causal tracing over `n` facts: `effect[site]` has one row per token group, one column per layer (probability)."""

    n: int
    stage: str
    sites: tuple[str, ...]
    token_groups: tuple[str, ...]
    layers: tuple[int, ...]
    effect: Mapping[str, Grid]
    low: Mapping[str, Grid]
    high: Mapping[str, Grid]
    clean_p: float | None
    corrupted_p: float | None
    example: TraceExample | None


@dataclass(frozen=True, slots=True)
class RolloutToken:
    """One token the policy wrote: its log-probability when sampled and its place's entropy, in nats.

    `clipped` is -1 or 1 where the update was held back at the lower or the upper bound, else 0.
    """

    text: str
    logprob: float
    entropy: float
    clipped: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of a GRPO step, and what it was worth beside its group."""

    group: int
    question: str
    gold: str
    text: str
    correct: bool
    advantage: float
    tokens: tuple[RolloutToken, ...]


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """What the policy wrote in one step: how many completions, how many right, and some of them token by token."""

    step: int
    completions: int
    correct: int
    shown: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """One column of a training log: values at steps, gaps left out."""

    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a run folder holds. What it does not hold is empty here and named in `notes`."""

    path: Path
    recipe: Mapping[str, object]
    logs: Mapping[str, Mapping[str, Series]]
    stages: Mapping[str, Evaluation]
    comparisons: Mapping[str, Comparison]
    edit: Edit | None
    trace: Trace | None
    transcript: Transcript | None
    rollouts: tuple[RolloutStep, ...]
    seconds: Mapping[str, float]
    environment: Mapping[str, object]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.name


def is_share(metric: str) -> bool:
    """Whether a metric is a share from 0 to 1, shown in percent, and its changes in points."""
    name = metric.rpartition(".")[2]
    return SIZES.search(name) is None and not name.startswith("p_")
