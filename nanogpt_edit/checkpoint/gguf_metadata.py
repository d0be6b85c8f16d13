"""The entries of a GGUF file's metadata by the types they should have, with errors that name the file and the entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanogpt_edit.checkpoint.config_json import LARGEST_NUMBER, LARGEST_SIZE
from nanogpt_edit.checkpoint.gguf_file import Value
from nanogpt_edit.common.errors import UserError, visible


@dataclass(frozen=True)
class Metadata:
    """Each method raises UserError for an entry that is missing or of another type."""

    raw: Mapping[str, Value]
    file: Path

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "must be a text", value)
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A size. One for each block, as some files have it, must be the same everywhere."""
        value = self._get(key, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self.wrong(key, "must be the same in all blocks", value)
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < LARGEST_SIZE:
            raise self.wrong(key, f"must be a whole number from 1 to {LARGEST_SIZE:,}", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < LARGEST_NUMBER:
            raise self.wrong(key, "must be a finite number", value)
        single = np.float32(value)  # as which 1e-5 comes back as 9.999999747378752e-06
        return float(str(single)) if float(single) == value else float(value)

    def texts(self, key: str) -> list[str]:
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(key, "must be a list of texts", value)
        return [str(each) for each in value]

    def integers(self, key: str, default: list[int]) -> list[int]:
        value = self._get(key, default)
        if not isinstance(value, list) or not all(type(each) is int for each in value):
            raise self.wrong(key, "must be a list of whole numbers", value)
        return [int(each) for each in value]

    def token_id(self, key: str) -> int | None:
        value = self.raw.get(key)
        if value is not None and (type(value) is not int or value < 0):
            raise self.wrong(key, "must be a token id", value)
        return value if isinstance(value, int) else None

    def expect(self, key: str, *values: Value) -> None:
        """Refuse a feature the decoder has not."""
        found = self.raw.get(key)
        if found is not None and found not in values:
            raise self.wrong(key, f"must be {' or '.join(map(str, values))}", found)

    def wrong(self, key: str, wanted: str, found: object) -> UserError:
        return UserError(f'"{key}" {wanted}; found {visible(repr(found)[:80])}.', place=f"{self.file}:")

    def _get(self, key: str, default: Value | None) -> Value:
        found = self.raw.get(key, default)
        if found is None:
            raise UserError(f'the metadata lack "{key}".', place=f"{self.file}:")
        return found
