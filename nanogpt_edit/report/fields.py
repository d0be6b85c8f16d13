"""One JSON object and where it came from, so that a wrong field is reported as "file: field: what was expected"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_json, read_numbered_jsonl
from nanogpt_edit.common.stats import Interval


class Fields:
    """Typed access to one JSON object. `where` names the file (and record) for the person who has to mend it."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self.values, self.where = values, where

    def error(self, key: str, expected: str) -> UserError:
        found = f"found {_shown(self.values[key])}" if key in self.values else "it is missing"
        return UserError(
            f'{self.where}: field "{key}": {expected} was expected, but {found}. '
            "The file is damaged or of another version; remove it and run that stage again."
        )

    def number(self, key: str) -> float:
        value = self.values.get(key)
        if not is_number(value):
            raise self.error(key, "a number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """None when the field is absent, null, or not finite."""
        value = self.values.get(key)
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return None
        return self.number(key)

    def integer(self, key: str) -> int:
        return int(self.number(key))

    def text(self, key: str, default: str | None = None) -> str:
        """The text of a field; numbers are shown as text (an answer of 72 may be written 72 or "72")."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, str):
            return value
        if is_number(value):
            return f"{value:g}"
        raise self.error(key, "text")

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        raise self.error(key, "true or false")

    def optional_share(self, key: str) -> float | None:
        """A share from 0 to 1, written as a number, a flag, or the list of single successes; None when absent."""
        value = self.values.get(key)
        if value is None or value == []:
            return None
        if isinstance(value, list) and all(isinstance(item, bool) or is_number(item) for item in value):
            return sum(float(item) for item in value) / len(value)
        if isinstance(value, bool):
            return float(value)
        return self.number(key)

    def items(self, key: str) -> list[object]:
        value = self.values.get(key)
        if not isinstance(value, list):
            raise self.error(key, "a list")
        return value

    def numbers(self, key: str) -> list[float]:
        values = self.items(key)
        if not all(map(is_number, values)):
            raise self.error(key, "a list of numbers")
        return [float(str(value)) for value in values]

    def inner(self, key: str) -> Fields:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return Fields(value, f"{self.where}: {key}")

    def optional_inner(self, key: str) -> Fields | None:
        return None if self.values.get(key) is None else self.inner(key)


def read_object(path: Path) -> Fields:
    """The object in a JSON file."""
    return Fields(read_json(path), str(path))


def read_lines(path: Path) -> list[Fields]:
    """The objects in a JSONL file, one per line."""
    return [Fields(record, f"{path}:{number}") for number, record in read_numbered_jsonl(path, log=True)]


def read_interval(fields: Fields, key: str) -> Interval | None:
    """{value, low, high, n}; None when it could not be measured (null)."""
    if fields.values.get(key) is None:
        return None
    inner = fields.inner(key)
    if inner.values.get("value") is None:
        return None
    return Interval(
        value=inner.number("value"), low=inner.number("low"), high=inner.number("high"), n=inner.integer("n")
    )


def is_number(value: object) -> TypeGuard[int | float]:
    """A finite number that is not a flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
