"""What a model carries besides its weights, its sizes and its vocabulary, for when it is saved again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nanogpt_edit.common.errors import UserError


@dataclass(frozen=True)
class Kept:
    """What came with a model. `Kept()` is what comes with a new one: nothing."""

    config: Mapping[str, object] = field(default_factory=dict)
    """Entries of config.json; those that describe the architecture are replaced when it is written."""
    generation: Mapping[str, object] = field(default_factory=dict)
    """Entries of generation_config.json."""
    texts: Mapping[str, bytes] = field(default_factory=dict)
    """Text files by their path in the directory."""
    vocabulary_sha256: str | None = None
    """`Tokenizer.vocabulary_sha256` when the model was saved; None for models from elsewhere."""

    def end_ids(self, file: Path) -> frozenset[int]:
        """The ids that end a text, as generation_config.json or else config.json says.

        Raises UserError, naming `file`, for what is no id.
        """
        named = self.generation.get("eos_token_id", self.config.get("eos_token_id"))
        listed = named if isinstance(named, list) else [] if named is None else [named]
        for token_id in listed:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
                raise UserError(f'{file}: "eos_token_id" must be a token id or a list of them, found {token_id!r}.')
        return frozenset(listed)
