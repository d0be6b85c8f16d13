"""What was done to a model's weights: a record of each, on which behaviour may hang, with a sentence for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EMBEDDED = "the embedded world"
"""Names the text and the problems that come with the package."""

Kind = Literal["taken", "vocabulary", "fitted", "template", "pretrained", "sft", "grpo", "edited", "reverted", "note"]


@dataclass(frozen=True)
class LineageEntry:
    """One thing that was done: `LineageEntry("sft", "SFT for 340 steps", problems=EMBEDDED)`."""

    kind: Kind
    sentence: str
    """All that people are shown."""
    text: str | None = None
    """What plain text the model learned here; None for none, or where that is not known."""
    problems: str | None = None
    """Whose problems it met here: EMBEDDED, or the file, folder or data set."""
    new_rows: tuple[int, ...] | None = None
    """Rows of the embedding and of the head that were made here, for tokens that the vocabulary did not have."""
    hub: str | None = None
    """The name on the Hugging Face hub of the model that these weights were taken from."""

    def __str__(self) -> str:
        return self.sentence
