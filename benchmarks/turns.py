"""Sides of a comparison take turns: each lives in a process of its own and works while the others wait.

A side is a function of (turn, options). It prepares, then asks for its next job, does it, and says what it did; the
seconds between the two are its step. One round is one step of every side, every second round in the opposite order,
so that a machine that slows down or speeds up touches all sides alike.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

Job = dict[str, Any]  # its "part" is what the job is called
Options = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One side's work on one job."""

    seconds: float
    found: Mapping[str, float]
    """What the side counted: tokens, a loss, …"""


class Turn:
    """A side's end of the line: `next` waits for a job (None: no more), `done` ends the step."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._line.send("ready")

    def next(self) -> Job | None:
        job: Job | None = self._line.recv()
        self._started = time.perf_counter()
        return job

    def done(self, **found: float) -> None:
        self._line.send(Step(time.perf_counter() - self._started, found))


Side = Callable[[Turn, Options], None]


def take_turns(sides: Mapping[str, Side], jobs: Sequence[Job], options: Options) -> dict[str, list[Step]]:
    """Each side's step on each of `jobs`, in order."""
    context = get_context("spawn")
    lines, workers = {}, []
    steps: dict[str, list[Step]] = {name: [] for name in sides}
    try:
        for name, side in sides.items():
            lines[name], other = context.Pipe()
            workers.append(context.Process(target=_run, args=(side, other, options), name=name))
            workers[-1].start()
            other.close()
            lines[name].recv()  # one after the other: while sides prepare, nobody else does
        for number, job in enumerate(jobs):
            for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
                lines[name].send(job)
                steps[name].append(lines[name].recv())
                step = steps[name][-1]
                print(f"{job['part']}: {name}: {step.seconds:.2f} s, {step.found}", file=sys.stderr, flush=True)
        for line in lines.values():
            line.send(None)
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.kill()
    return steps


def _run(side: Side, line: Connection, options: Options) -> None:
    side(Turn(line), options)


@dataclass(frozen=True)
class Summary:
    """One side's steps in three numbers."""

    median: float
    smallest: float
    largest: float


def summary(values: Sequence[float]) -> Summary:
    return Summary(statistics.median(values), min(values), max(values))
