"""Sides of a comparison take turns: each lives in a process of its own and works while the others wait.

A side is a function of (turn, options). It prepares, then asks for its next job, does it, and says what it did; the
seconds between the two are its step. One round is one step of every side, every second round in the opposite order,
so that a machine that slows down or speeds up touches all sides alike.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from machine import device_memory, wait_for_device

Job = dict[str, Any]  # its "part" is what the job is called
Options = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One side's work on one job."""

    seconds: float
    found: Mapping[str, float]
    """What the side counted: tokens, a loss, …"""


READY = Step(0.0, {})


class Turn:
    """A side's end of the line: `next` waits for a job (None: no more), `done` ends the step."""

    def __init__(self, receive: Callable[[], Job | None], send: Callable[[Step], None]) -> None:
        self._receive, self._send = receive, send

    def next(self) -> Job | None:
        job = self._receive()
        wait_for_device()
        device_memory()  # what was held before does not count
        self._started = time.perf_counter()
        return job

    def done(self, **found: float) -> None:
        wait_for_device()
        self._send(Step(time.perf_counter() - self._started, found | device_memory()))


Side = Callable[[Turn, Options], None]


def alone(side: Side, jobs: Sequence[Job], options: Options) -> list[Step]:
    """The steps of a side that is not compared, in this process."""
    steps: list[Step] = []
    waiting: list[Job | None] = [*jobs, None]
    side(Turn(lambda: waiting.pop(0), steps.append), options)
    return steps


def take_turns(sides: Mapping[str, Side], jobs: Sequence[Job], options: Options) -> dict[str, list[Step]]:
    """Each side's step on each of `jobs`, in order. Raises RuntimeError, with its reason, when a side fails."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["turns"])  # and all it needs, once for all sides, where the path is known
    lines: dict[str, Connection] = {}
    workers = []
    steps: dict[str, list[Step]] = {name: [] for name in sides}
    try:
        for name, side in sides.items():
            lines[name], other = context.Pipe()
            workers.append(context.Process(target=_run, args=(side, other, options, os.getpgrp()), name=name))
            workers[-1].start()
            other.close()
            _answer(lines[name], name)  # one after the other: while sides prepare, nobody else does
        for number, job in enumerate(jobs):
            for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
                with suppress(ConnectionError):  # a side that has ended has said why
                    lines[name].send(job)
                steps[name].append(_answer(lines[name], name))
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


def _run(side: Side, line: Connection, options: Options, group: int) -> None:
    os.setpgid(0, group)  # who ends the comparison ends its sides
    try:
        line.send(READY)
        side(Turn(line.recv, line.send), options)
    except Exception as error:
        line.send(f"{type(error).__name__}: {error}")
        raise


def _answer(line: Connection, name: str) -> Step:
    """What a side says next: that it is ready, or its step."""
    try:
        answer = line.recv()
    except (EOFError, ConnectionError):
        raise RuntimeError(f"{name} was ended without a word (out of memory?)") from None
    if isinstance(answer, str):
        raise RuntimeError(f"{name} failed: {answer}")
    step: Step = answer
    return step


@dataclass(frozen=True)
class Summary:
    """One side's steps in three numbers."""

    median: float
    smallest: float
    largest: float


def summary(values: Sequence[float]) -> Summary:
    return Summary(statistics.median(values), min(values), max(values))
