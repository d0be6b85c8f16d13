"""Teach a GPT to reason, edit the facts in its weights, and prove what each step gained and cost.

    import nanogpt_edit as ne

    model = ne.load("runs/tiny/grpo")
    for completion in ne.generate(model, ["Tom has 3 apples …"], n=4):
        print(completion.text)

Nothing heavy is imported before the first of these names is used.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nanogpt_edit import edit as _edit_room
from nanogpt_edit import evaluate as _evaluate_room

if TYPE_CHECKING:
    from nanogpt_edit.api import edit, evaluate, run, score, trace
    from nanogpt_edit.data.problems import read_problems
    from nanogpt_edit.edit.fact_files import read_facts
    from nanogpt_edit.generation import generate
    from nanogpt_edit.model.checkpoint import load, save

__version__ = "0.1.0"
__all__ = ["edit", "evaluate", "generate", "load", "read_facts", "read_problems", "run", "save", "score", "trace"]

_HOMES = {
    "edit": "nanogpt_edit.api",
    "evaluate": "nanogpt_edit.api",
    "generate": "nanogpt_edit.generation",
    "load": "nanogpt_edit.model.checkpoint",
    "read_facts": "nanogpt_edit.edit.fact_files",
    "read_problems": "nanogpt_edit.data.problems",
    "run": "nanogpt_edit.api",
    "save": "nanogpt_edit.model.checkpoint",
    "score": "nanogpt_edit.api",
    "trace": "nanogpt_edit.api",
}


class _Room(ModuleType):
    """Two rooms are also verbs: `ne.edit(model, facts)` is a call, `nanogpt_edit.edit.facts` a file of the room."""

    def __call__(self, *arguments: object, **named: object) -> object:
        return _find(self.__name__.rpartition(".")[2])(*arguments, **named)


_edit_room.__class__ = _Room
_evaluate_room.__class__ = _Room


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return _find(name)
    raise AttributeError(f"module 'nanogpt_edit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _find(name: str) -> Any:  # a different function each time
    return getattr(importlib.import_module(_HOMES[name]), name)
