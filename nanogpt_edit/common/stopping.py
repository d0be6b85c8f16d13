"""SIGINT and SIGTERM are obeyed within five seconds, whatever the program is doing.

Python looks at signals in the main thread, between two of its instructions; one long operator, or a library that throws
an exception away, would keep it waiting. So a thread is told of them at once (`signal.set_wakeup_fd`), and ends the
process itself when the main thread has not done so in time. That loses nothing: a run goes on after any kill. A second
signal ends the process at once.

A training stage first tries to end its step (`training/trainer.py`); when that takes longer than `STEP_SECONDS` the
thread has the handler called that was there before, which raises `Stopped` in the middle of it.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

STEP_SECONDS = 1.0  # for a training step to end by itself
DEADLINE_SECONDS = 4.0  # for everything; giving back gigabytes of memory takes the system a moment more

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM has asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def status_of(number: int) -> int:
    """The exit status of a process that a signal has ended: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + number


def obey(last_words: Callable[[int], object], *, alone: bool = True) -> None:
    """Obey signals from now to the end of this process. To be called once, in the main thread.

    `last_words(signal)` speaks for a main thread that does not come to it. One of several processes (not `alone`) gets
    what a terminal sends twice, the second time from torchrun, and leaves a training step together with the others: it
    is not hurried.
    """
    global _watch
    _watch = _Watch(last_words, alone=alone)


def finish_within(seconds: float) -> None:
    """The first signal is somebody else's from now on: what runs may be finished for so long. The second ends it."""
    if _watch is not None:
        _watch.finishing_seconds = seconds


def asked() -> int | None:
    """The signal that has asked this process to end, if one has."""
    return None if _watch is None else _watch.number


def speak() -> bool:
    """May the person be told now? Once only: the main thread and that of the signals may both be about to."""
    return _watch is None or _watch.speak()


def done() -> None:
    """The work is done: a signal that comes from now on would only spoil the end of the process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)


def leave(status: int) -> NoReturn:
    """End this process at once and with this exit status; for one that was asked to stop or has been in a group.

    Taking the interpreter apart can last longer than a person who has asked to stop will wait. In a group, a thread of
    Gloo's may still be about to let go of the last tensor it sent, for which it needs the interpreter, and destroying
    the group does not end the thread while anything refers to the group, as caches of torch do. Were the interpreter
    taken apart under it, the process would abort (pytorch/pytorch#179291, #190489).
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk, a closed stream
            stream.flush()
    os._exit(status)


class _Watch:
    """The handlers, and the thread that is told of every signal."""

    def __init__(self, last_words: Callable[[int], object], *, alone: bool) -> None:
        self.last_words, self.alone = last_words, alone
        self.number: int | None = None  # of the signal that has come
        self.raised = self.spoken = False
        self.speaking = threading.Lock()
        self.finishing_seconds: float | None = None
        self.nudges = 0  # signals of our own that are still on their way
        self.told, self.teller = socket.socketpair()  # Windows waits for sockets only, and not for pipes
        self.teller.setblocking(False)
        for number in SIGNALS:
            signal.signal(number, self.stop)
        signal.set_wakeup_fd(self.teller.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self.watch, name="signals", daemon=True).start()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """The handler, in the main thread."""
        self.number = self.number or number
        self.raised = True
        raise Stopped(self.number)

    def watch(self) -> None:
        """The thread: from the first signal on, the process has so many seconds, or until the second."""
        while self.number is None:
            self.number = self.next_signal(None)
        if self.finishing_seconds is not None:
            self.another_within(self.finishing_seconds)
            return self.end()
        if not self.another_within(STEP_SECONDS):
            self.nudge()
            self.another_within(DEADLINE_SECONDS - STEP_SECONDS)
        self.end()

    def another_within(self, seconds: float) -> bool:
        """Wait so long for one more signal; of several processes each waits to the end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.next_signal(left) is not None and self.alone:
                return True
        return False

    def next_signal(self, seconds: float | None) -> int | None:
        """The next signal that somebody has sent within so many seconds (None: however long it takes)."""
        if not select.select([self.told], [], [], seconds)[0]:
            return None
        (number,) = self.told.recv(1)
        if number in SIGNALS and self.nudges:
            self.nudges -= 1
            return None
        return number if number in SIGNALS else None

    def nudge(self) -> None:
        """Have the handler called that stands now, unless it has been."""
        if self.alone and not self.raised and self.number is not None:
            self.nudges += 1  # it comes to the thread as a signal does
            _thread.interrupt_main(signal.Signals(self.number))

    def speak(self) -> bool:
        """True the first time."""
        with self.speaking:
            first, self.spoken = not self.spoken, True
        return first

    def end(self) -> None:
        """End the process, whatever its main thread is doing."""
        number = self.number or signal.SIGINT
        self.last_words(number)
        os._exit(status_of(number))


_watch: _Watch | None = None
