"""The live line in a notebook: one output of the cell, rewritten in place, where a stream would grow by every line.

IPython is not imported: where a notebook runs, it is there already.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol, cast


class Output(Protocol):
    """IPython's handle of something displayed."""

    def update(self, data: dict[str, str], *, raw: bool) -> None: ...


@dataclass
class _Live:
    """The output that is rewritten, and the cell it belongs to."""

    cell: object = None
    output: Output | None = None


_live = _Live()


def in_notebook() -> bool:
    """Does a kernel run this process, whose cells have outputs?"""
    return hasattr(_shell(), "kernel")


def rewrite(line: str, *, last: bool = False) -> None:
    """Show `line` in the place of the one before; after the `last` of a piece of work a new output begins."""
    cell, data = getattr(_shell(), "execution_count", None), {"text/plain": line}
    if _live.output is None or _live.cell != cell:
        _live.output, _live.cell = _display(data), cell
    else:
        _live.output.update(data, raw=True)
    if last:
        _live.output = None


def _shell() -> object:
    """IPython's shell, where there is one."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _display(data: dict[str, str]) -> Output:
    return cast(Output, sys.modules["IPython"].display.display(data, raw=True, display_id=True))
