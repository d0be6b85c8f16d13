"""A line of a stage's log per step, and whoever else wants to know of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from nanogpt_edit.common.files import append_jsonl

Line = Mapping[str, float | None]
Listener = Callable[[Path, Line], None]
_listener: ContextVar[Listener | None] = ContextVar("log_lines", default=None)


def write_line(log: Path, line: Line) -> None:
    """Append a step's numbers to the log, then tell the listener of this thread, if any."""
    append_jsonl(log, line)
    if (listener := _listener.get()) is not None:
        listener(log, line)


@contextmanager
def lines_told_to(listener: Listener) -> Iterator[None]:
    """Inside, in this thread, `listener` hears of every line that has been written."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)
