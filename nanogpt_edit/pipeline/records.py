"""What a run leaves at the top of its folder, as the report reads it too (so nothing here needs torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

StageName = Literal["base", "sft", "grpo", "edited"]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)
"""The checkpoints of a run in the order they are made, where a recipe does not put the edit earlier. It may ask for a
part of them."""

READ_BY = {"sft": "sft", "grpo": "grpo", "edit": "edited", "trace": "edited", "facts": "edited"}
"""What of a recipe one stage alone reads, and which."""


def timed(stages: Sequence[str]) -> tuple[str, ...]:
    """What timing.json of a run of these stages may hold."""
    traced = ("trace",) if "edited" in stages else ()
    return ("world", *stages, *(f"evaluate_{stage}" for stage in stages), *traced, "report")


@dataclass(frozen=True)
class Timing:
    """timing.json: the seconds of each stage so far, and the most memory it took where the machine tells."""

    stages: Mapping[str, float]
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
