"""What a person sees while long work runs: one live line in a terminal, a plain line now and then when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
PLAIN_INTERVAL_SECONDS = 10.0
CLEAR_LINE = "\r\x1b[2K"


def say(message: str, *, style: str | None = None) -> None:
    """Print one line to the person (standard error, so that results on standard output stay clean)."""
    if console.is_terminal and not console.quiet:
        console.file.write(CLEAR_LINE)  # of a live line, which comes again with its next update
    console.print(message, style=style, markup=False)


class Progress:
    """Counts finished units of one piece of work and shows rate, values and time left."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self._done_at_start = done
        self.started = time.perf_counter()
        self._shown = self.started
        self._live = console.is_terminal and not console.quiet
        self._line_shown = ""

    def update(self, done: int, **values: float | str) -> None:
        """Show that `done` of `total` units are finished, with `values` such as loss=1.23."""
        self.done = done
        now = time.perf_counter()
        if now - self._shown < (0.1 if self._live else PLAIN_INTERVAL_SECONDS) and done < self.total:
            return
        self._shown = now
        line = self._line(now, values)
        if self._live:
            self._line_shown = line[: console.width - 1]
            console.file.write(CLEAR_LINE + self._line_shown)
            console.file.flush()
        else:
            say(line)

    def _line(self, now: float, values: dict[str, float | str]) -> str:
        elapsed = now - self.started
        fresh = self.done - self._done_at_start
        rate = fresh / elapsed if elapsed > 0 else 0.0
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        eta = f"{clock(left)} left" if self.done < self.total else f"took {clock(elapsed)}"
        return f"{self.label}  {self.done}/{self.total}  {rate:.3g} {self.unit}/s  {shown}  {eta}"

    def close(self) -> None:
        """Leave the last line standing."""
        if self._live and self._line_shown:
            console.file.write(f"{CLEAR_LINE}{self._line_shown}\n")
            console.file.flush()


@contextmanager
def progress(label: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Progress]:
    """A `Progress` that closes its line however the work ends."""
    bar = Progress(label, total, unit, done)
    try:
        yield bar
    finally:
        bar.close()


def clock(seconds: float) -> str:
    """75.3 -> '1:15'; infinity -> '?'."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
