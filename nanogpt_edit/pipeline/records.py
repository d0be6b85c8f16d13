"""What a run leaves at the top of its folder, as the report reads it too (so nothing here needs torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STAGE_NAMES = ("base", "sft", "grpo", "edited")
"""The checkpoints of a run in the order they are made. A run may hold any part of them."""

TIMED = ("world", *STAGE_NAMES, *(f"evaluate_{stage}" for stage in STAGE_NAMES), "trace", "report")
"""What timing.json may hold."""


@dataclass(frozen=True)
class Timing:
    """timing.json: the seconds of each stage so far."""

    stages: Mapping[str, float]
