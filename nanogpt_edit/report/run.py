"""What a run folder says, as one frozen record: the only thing the other files of this room look at.

`read.py` fills them from the files; nothing here opens a file or judges a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nanogpt_edit.editing.records import Edit
from nanogpt_edit.evaluation.records import Comparison, Evaluation, ToldCompletion, Transcript
from nanogpt_edit.tracing.records import AverageTrace
from nanogpt_edit.training.records import Rollout

SIZES = re.compile(r"tokens|seconds|perplexity|nats|length|bits|mean_|entropy$|rank$|^kl$")


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
    planned: tuple[str, ...]
    """The stages that the recipe asks for."""
    source: str | None
    """The model that the run starts from; None where it makes one."""
    logs: Mapping[str, Mapping[str, Series]]
    stages: Mapping[str, Evaluation]
    comparisons: Mapping[str, Comparison]
    edit: Edit | None
    trace: AverageTrace | None
    transcript: Transcript | None
    rollouts: tuple[RolloutStep, ...]
    told: Mapping[str, tuple[ToldCompletion, ...]]
    """Completions of each checkpoint token by token."""
    seconds: Mapping[str, float]
    peak_bytes: Mapping[str, int]
    environment: Mapping[str, object]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def edited_from(self) -> str | None:
        """The checkpoint that the edit started from."""
        stages = list(self.stages)
        place = stages.index("edited") if "edited" in stages else 0
        return stages[place - 1] if place else None

    def writes_answers(self, skill: str) -> bool:
        """Has any checkpoint written a well-formed answer to a problem of this skill?"""
        shares = (stage.metrics.get(skill, {}).get("well_formed") for stage in self.stages.values())
        return any(share is None or share.value > 0 for share in shares)


def is_share(metric: str) -> bool:
    """Whether a metric is a share from 0 to 1, shown in percent, and its changes in points."""
    name = metric.rpartition(".")[2]
    return SIZES.search(name) is None and not name.startswith("p_")
