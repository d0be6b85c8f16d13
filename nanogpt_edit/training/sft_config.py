"""The settings of SFT."""

from __future__ import annotations

from dataclasses import dataclass

from nanogpt_edit.common.errors import UserError, at_least
from nanogpt_edit.training.config import Keep, TuningConfig


@dataclass(frozen=True)
class SFTConfig(TuningConfig):
    """How a model is fine-tuned on worked solutions."""

    chats: str | None = None
    """Conversations to learn from in the place of the problems: a file (.jsonl, .json, .parquet; also .gz), a folder
    with train.jsonl, or a hub data set. Records with messages, ShareGPT's conversations, prompt and completion, or
    instruction and output; every message of the assistant is learned."""
    chats_split: str = "train"
    """Which split of a folder or a hub data set."""
    chats_fields: str | None = None
    """Where a record has what, if its fields have other names: messages=dialog, or prompt=ask,completion=say."""
    chat_template: str | None = None
    """How conversations are written: plain, or a file in Jinja (None: as the model's own template says; plain where it
    has none). It is saved with the model."""
    batch_size: int = 32
    """Problems (or conversations) per step."""
    batch_tokens: int | None = None
    """Fewer problems are taken when they are long: about as many as have this many tokens together (None: always
    `batch_size`)."""
    fit_problems: int = 32
    """Problems on which the head's rows of tokens that were added to the vocabulary are fitted before the first step,
    for the model to write its answers in their form from the start (0: they begin at the mean row)."""
    replay: float = 0.2
    """Share of a step's rows that come from another source instead of the problems, against forgetting (0: none)."""
    replay_source: str | None = None
    """The other source: text (a file, a folder, a hub data set), or worked problems (a .jsonl or .json file, or a
    folder with train.jsonl). None: pretrain.text, and the embedded world where the model was pretrained on it."""
    replay_tokens: int = 128
    """Tokens per row of text."""
    keep: Keep = "best"
    """Which weights the stage leaves: those with the lowest validation loss, the last, or both: the best, and the last
    beside them in a folder `sft-last`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.replay < 1:
            raise UserError(f"is {self.replay}; it is a share of the rows, in [0, 1).", field="replay")
        if self.replay_source is not None and self.replay == 0:
            raise UserError(
                f"is {self.replay_source}, but replay is 0 and nothing of it would be mixed in; set replay to its "
                "share of the rows (0.2, say).",
                field="replay_source",
            )
        for name in ("chat_template", "chats_fields"):
            if (value := getattr(self, name)) is not None and self.chats is None:
                raise UserError(
                    f"is {value}, but no conversations are given; give sft.chats, or leave it out.", field=name
                )
        at_least(1, self, "batch_size", "batch_tokens")
        at_least(0, self, "fit_problems")
        if self.replay_tokens < 2:
            raise UserError(f"is {self.replay_tokens}; a row needs at least 2 to predict one.", field="replay_tokens")

    @property
    def replay_rows(self) -> int:
        """Rows of the other source per step, beside `batch_size` problems."""
        return round(self.batch_size * self.replay / (1 - self.replay))
