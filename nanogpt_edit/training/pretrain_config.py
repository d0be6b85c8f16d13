"""The settings of pretraining."""

from __future__ import annotations

from dataclasses import dataclass

from nanogpt_edit.common.errors import at_least
from nanogpt_edit.common.records import Settings
from nanogpt_edit.training.config import LoopConfig


@dataclass(frozen=True)
class BaseText(Settings):
    """Ordinary text, beside the problems: the facts of the embedded world, and further text."""

    context_tokens: int = 128
    """Tokens per row."""
    fact_repeats: int = 8
    """How often the world's facts occur in the text for each time its word problems do."""
    text: str | None = "auto"
    """Further plain text: a file, a folder or a hub data set; auto takes a folder "text" beside the problems' folder if
    there is one, none takes nothing."""

    def __post_init__(self) -> None:
        at_least(1, self, "context_tokens")
        at_least(0, self, "fact_repeats")


@dataclass(frozen=True)
class PretrainConfig(LoopConfig, BaseText):
    """How a model is trained from nothing on plain text."""

    batch_size: int = 24
    """Rows per step."""

    def __post_init__(self) -> None:
        LoopConfig.__post_init__(self)
        BaseText.__post_init__(self)
        at_least(1, self, "batch_size")
