"""What a person sees while long work runs: one live line in a terminal or a notebook, a plain line now and then when
piped.

Work shows itself by opening a `progress`, and tells it what is done. Where it cannot for a while (one long operator, a
library), a thread of this module shows the innermost open one again: no ten seconds pass in silence.

All of it goes through the logger "nanogpt_edit", at INFO, to a handler of this module that writes to standard error. A
program that uses the package silences it as any other, `logging.getLogger("nanogpt_edit").setLevel(logging.WARNING)`,
or by `quiet`; a handler of its own in the place of this one takes the messages elsewhere, and no live line is drawn.
The logger does not propagate, so that a program that logs too shows nothing twice.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console, RenderableType

from nanogpt_edit.common import notebook
from nanogpt_edit.common.notebook import in_notebook

Item = TypeVar("Item")
Listener = Callable[[str, int, int | None], None]
"""Is told what is at work, how much of it is done, and of how much."""

logger = logging.getLogger("nanogpt_edit")
console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
LIVE_INTERVAL_SECONDS, PLAIN_INTERVAL_SECONDS = 0.1, 8.0
BEAT_SECONDS = 0.5  # from one look at the silence to the next; the rest of ten seconds is for a busy machine
CLEAR_LINE = "\r\x1b[2K"
NOTEBOOK_COLUMNS = 100
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


class _Screen:
    """Who is at work, the innermost last, when anything was last shown, and the thread that watches the silence."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.shown = 0.0
        self.at_work: list[Progress] = []
        self.watching = False

    def enter(self, work: Progress) -> None:
        with self.lock:
            if not self.at_work:
                self.shown = work.started
            self.at_work.append(work)
            if not self.watching and heard():
                self.watching = True
                threading.Thread(target=self.watch, name="progress", daemon=True).start()

    def leave(self, work: Progress) -> None:
        with self.lock:
            self.at_work.remove(work)

    def watch(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            with self.lock:
                if not self.at_work:
                    self.watching = False
                    return
                self.at_work[-1].beat()


_screen = _Screen()


class _ToPerson(logging.Handler):
    """Writes messages on standard error, each on a line of its own, above the live line of a terminal."""

    def createLock(self) -> None:
        self.lock = _screen.lock  # one lock for messages and live lines: two could wait for each other

    def emit(self, record: logging.LogRecord) -> None:
        if console.is_terminal:
            console.file.write(CLEAR_LINE)  # of a live line, which comes again with its next update
        console.print(record.getMessage(), markup=False)


_to_person = _ToPerson()
if not logger.handlers:  # else the program has already said where it wants the messages
    logger.addHandler(_to_person)
    logger.propagate = False
if logger.level == logging.NOTSET:
    logger.setLevel(logging.INFO)


def heard() -> bool:
    """Does anybody want to see what is said?"""
    return logger.isEnabledFor(logging.INFO)


def say(message: str) -> None:
    """One line to the person (standard error, so that results on standard output stay clean), logged at INFO."""
    with _screen.lock:
        logger.info(message, stacklevel=2)
        _screen.shown = time.perf_counter()


def show(table: RenderableType) -> None:
    """Draw what is more than a line, where lines are shown."""
    if heard() and _to_person in logger.handlers:
        console.print(table)


def quiet(silent: bool = True) -> None:
    """Show and say nothing from now on (False: again).

    The same as `logging.getLogger("nanogpt_edit").setLevel(logging.WARNING)` (False: `logging.INFO`), which does before
    the first use, too. Errors are exceptions and are not touched.
    """
    logger.setLevel(logging.WARNING if silent else logging.INFO)


class Progress:
    """Counts finished units of one piece of work and shows rate, values and time left."""

    def __init__(
        self, label: str, total: int | None, unit: str, done: int = 0, *, brief: bool = False, plain: bool = False
    ) -> None:
        self.label, self.total, self.unit, self.brief = label, total, unit, brief
        self.done = self._done_at_start = done
        self.started = time.perf_counter()
        seen = _to_person in logger.handlers
        self._live = seen and (console.is_terminal or in_notebook())
        self._hidden = plain and self._live
        self._values: dict[str, float | str] = {}
        self._line_shown = ""

    def update(self, done: int, **values: float | str) -> None:
        """Show that `done` of `total` units are finished, with `values` such as loss=1.23."""
        self.done, self._values = done, values
        self.tell()
        if done == self.total and not self.brief:
            self._show()
        else:
            self.beat()

    def counted(self, items: Iterable[Item]) -> Iterator[Item]:
        """Each of `items`, counted as done when the next one is asked for."""
        for number, item in enumerate(items, start=1):
            yield item
            self.update(number)

    def tell(self) -> None:
        """Tell the listener of this thread, if any (see `told_to`)."""
        if (listener := _listener.get()) is not None:
            listener(self.label, self.done, self.total)

    def beat(self) -> None:
        """Show the line again when nothing was shown for a while."""
        if time.perf_counter() - _screen.shown >= (LIVE_INTERVAL_SECONDS if self._live else PLAIN_INTERVAL_SECONDS):
            self._show()

    def _show(self) -> None:
        if self._hidden or not heard():
            return
        with _screen.lock:
            line = self._line()
            if self._live:
                self._line_shown = line[: _columns() - 1]
                _rewrite(self._line_shown)
                _screen.shown = time.perf_counter()
            else:
                say(line)

    def _line(self) -> str:
        elapsed = time.perf_counter() - self.started
        if self.total is None:
            return f"{self.label}  {clock(elapsed)} so far"
        fresh = self.done - self._done_at_start
        rate = fresh / elapsed if elapsed > 0 else 0.0
        left = f"{clock((self.total - self.done) / rate)} left" if rate > 0 else f"{clock(elapsed)} so far"
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self._values.items())
        eta = left if self.done < self.total else f"took {clock(elapsed)}"
        return f"{self.label}  {self.done}/{self.total}  {rate:.3g} {self.unit}/s  {shown}  {eta}"

    def close(self) -> None:
        """Leave the last line standing, or none of brief work."""
        if self._live and self._line_shown:
            with _screen.lock:
                _rewrite("" if self.brief else self._line_shown, last=not self.brief)


def _columns() -> int:
    return console.width if console.is_terminal else NOTEBOOK_COLUMNS


def _rewrite(line: str, *, last: bool = False) -> None:
    """Put `line` in the place of the live one; the `last` of a piece of work stays."""
    if console.is_terminal:
        console.file.write(f"{CLEAR_LINE}{line}" + "\n" * last)
        console.file.flush()
    else:
        notebook.rewrite(line, last=last)


@contextmanager
def progress(
    label: str,
    total: int | None = None,
    unit: str = "steps",
    done: int = 0,
    *,
    brief: bool = False,
    plain: bool = False,
) -> Iterator[Progress]:
    """A `Progress` that is shown while the work lasts and closes its line however it ends.

    Without a `total` it shows the time. `brief` work leaves no line when it is done; `plain` work shows itself in a
    pipe only, for it has something else to write to a terminal. `@progress("…")` shows a whole function's work.
    """
    work = Progress(label, total, unit, done, brief=brief or total is None, plain=plain)
    _screen.enter(work)
    try:
        work.tell()
        yield work
    finally:
        _screen.leave(work)
        work.close()


@contextmanager
def told_to(listener: Listener) -> Iterator[None]:
    """Inside, in this thread, `listener` hears of all progress, too. What it raises ends the work that told it."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def counted(items: Sequence[Item], label: str, *, unit: str) -> Iterator[Item]:
    """Each of `items`, with a brief `progress` beside them."""
    with progress(label, len(items), unit, brief=True) as work:
        yield from work.counted(items)


def clock(seconds: float) -> str:
    """75.3 -> '1:15'; infinity -> '?'."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
