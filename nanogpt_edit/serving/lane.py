"""One model's rows, and what waits for them: the books that the scheduler keeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from nanogpt_edit.engine.completion import Fresh, Request
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.messages import Key, key_of
from nanogpt_edit.serving.room import Room


@dataclass(eq=False)
class Job:
    """What one client has asked for: some rows, and where their tokens go."""

    model: str
    requests: Sequence[Request]
    deliver: Callable[[list[Fresh]], None]
    """Called from the scheduler's thread with what has been written; it must not wait."""
    fail: Callable[[Exception], None]
    """Called instead, once, where nothing more will come."""
    each_token: bool = True
    """False: a row's tokens are delivered together, when it is finished."""
    until: float = 0.0  # time.monotonic()
    to_come: deque[Request] = field(default_factory=deque)
    held: dict[Request, list[Fresh]] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """Something to be asked of a model between two steps, and where the answer goes."""

    ask: Callable[[GPT], Any]
    answer: Future[Any]


class Lane:
    """One model's rows, and what waits for them."""

    def __init__(self, name: str, model: GPT, room: Room) -> None:
        self.name, self.model, self.room = name, model, room
        self.version: int | None = None  # of the weights that the writer has been told of
        self.begun = False  # has the shelf been told that the model is used? Nobody changes its weights until it rests
        self.may_begin = True  # else somebody waits to have the model alone: what runs is finished
        self.version_now = 0
        self.waiting: deque[Job] = deque()  # jobs with rows to come; the next one first
        self.questions: deque[Question] = deque()
        self.asked: dict[int, Future[Any]] = {}  # the writer has been asked, and has not answered
        self.rows: dict[Key, Request] = {}  # that the writer has
        self.owner: dict[Request, Job] = {}  # of those that somebody waits for

    @property
    def at_work(self) -> bool:
        """Is the writer at something of it?"""
        return bool(self.rows or self.asked)

    @property
    def wanted(self) -> bool:
        return bool(self.at_work or self.waiting or self.questions)

    @property
    def free(self) -> int:
        return self.room.rows - len(self.rows)

    def next_rows(self) -> list[Request]:
        """Rows for the free slots, from the waiting jobs in turn."""
        chosen: list[Request] = []
        while self.waiting and self.free:
            job = self.waiting.popleft()
            request = job.to_come.popleft()
            chosen.append(request)
            self.rows[key_of(request)], self.owner[request] = request, job
            if job.to_come:
                self.waiting.append(job)
        return chosen
