"""Bad inputs by verb. Each module here has ROWS; `test_bad_inputs.py` runs every row of every module.

A row is what a person types in a folder that holds `model` (a two-layer GPT-2 with a tokenizer) and the row's own
files. Right is for all of them: status 2, one sentence that holds the row's words, nothing new in the folder.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Contents = str | bytes | Callable[[Path], object]


@dataclass(frozen=True)
class Bad:
    """One bad input: `Bad("sample model --prompt hi --temperature nan", says="temperature")`."""

    command: str
    """The command line without the program's name, quoted as in a shell."""
    says: str
    """Words that the sentence must hold: the flag, file or field."""
    files: Mapping[str, Contents] = field(default_factory=dict)
    """Files by name, put into the folder first: their text, their bytes, or what makes them at a path."""

    def __str__(self) -> str:
        return self.command if len(self.command) <= 80 else f"{self.command[:79]}…"


def all_rows() -> list[Bad]:
    """The rows of every module of this folder."""
    modules = (importlib.import_module(f"{__name__}.{each.name}") for each in pkgutil.iter_modules(__path__))
    return [row for module in modules for row in module.ROWS]
