"""One thread that writes everybody's texts: requests come at any time and share each model's batch.

Between two steps the thread looks at what has changed: rows that are wanted take free slots, rows whose reader has left
are taken out, and of several models each has its step in turn. Of the requests for one model none waits behind another
that asks for many texts: slots are given out in turn, a row at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.engine.batch import Batch
from nanogpt_edit.engine.completion import Fresh, Request
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.models import Shelf, UnknownModel

Found = TypeVar("Found")
PROMPT_TOKENS = 2048  # read between two steps of the others, unless one prompt alone has more
BUNCH, BUNCH_STEPS = 1 / 8, 3  # rows begin together: so many of those that run, or all that have come in so many steps
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """How much is taken on at once."""

    rows: int = 32
    """Texts of one model that are written at the same time."""
    waiting: int = 256
    """Texts that may wait for a row; further requests are told to come back later."""
    new_tokens: int = 1024
    """Of a text at most."""
    prompt_tokens: int = 4096
    """Of a prompt at most."""
    seconds: float = 300.0
    """For a request from its coming to its end; what is written by then is given out."""
    cache_bytes: int | None = None
    """For the keys and values of a model's texts, and its weights once more in an order that a CPU reads faster (None:
    as the engine has it)."""


class Full(Exception):
    """Too much is waiting already."""


class Ending(Exception):
    """The server is being ended."""


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
class Task:
    """Something to be asked of a model between two steps."""

    run: Callable[[GPT], None]
    give_up: Callable[[Exception], object]


class Lane:
    """One model's rows, and what waits for them."""

    def __init__(self, name: str, model: GPT, room: Room) -> None:
        self.name, self.model, self.room = name, model, room
        self.engine = Engine(model, max_slots=room.rows, cache_bytes=room.cache_bytes, in_slots=False)
        self.batch: Batch | None = None
        self.version = -1  # of the weights that the batch has seen
        self.begun = False  # has it said that it uses the model?
        self.may_begin = True  # else somebody waits to have the model alone: what runs is finished
        self.version_now = 0
        self.waiting: deque[Job] = deque()  # jobs with rows to come; the next one first
        self.tasks: deque[Task] = deque()
        self.owner: dict[Request, Job] = {}  # of the running rows
        self.steps_waited = 0  # by rows for which there is a slot

    @property
    def asked(self) -> bool:
        return bool(self.owner or self.waiting or self.tasks)

    def open_batch(self) -> Batch:
        """The batch, made anew where the weights have changed: it may hold copies of them."""
        if self.batch is None or (self.may_begin and self.version != self.version_now):
            most = self.model.config.block_size - 1
            self.batch = self.engine.open(
                self.room.rows,
                new_tokens=min(self.room.new_tokens, most),
                longest_prompt=min(self.room.prompt_tokens, most),
            )
            self.version = self.version_now
        return self.batch

    def next_rows(self, free: int) -> list[Request]:
        """Rows for the free slots, from the waiting jobs in turn; none yet where more may come to begin with them."""
        wanted = min(free, sum(len(job.to_come) for job in self.waiting))
        self.steps_waited = self.steps_waited + 1 if wanted else 0
        if wanted < BUNCH * len(self.owner) and self.steps_waited <= BUNCH_STEPS:
            return []
        self.steps_waited = 0
        chosen: list[Request] = []
        tokens = 0
        while self.waiting and len(chosen) < free:
            job = self.waiting.popleft()
            request = job.to_come[0]
            if chosen and tokens + len(request.prompt) > PROMPT_TOKENS:
                self.waiting.appendleft(job)
                break
            tokens += len(request.prompt)
            chosen.append(job.to_come.popleft())
            self.owner[request] = job
            if job.to_come:
                self.waiting.append(job)
        return chosen


class Scheduler:
    """Owns the thread. Jobs may be submitted and cancelled from any other."""

    def __init__(self, shelf: Shelf, room: Room | None = None) -> None:
        self.shelf, self.room = shelf, room or Room()
        self._lanes: dict[str, Lane] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._gone: set[Request] = set()  # cancelled, and not yet taken out
        self.tokens = 0  # written since the start
        shelf.on_change = self._wake
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Take on a job of a model that is loaded. Raises Full, and UnknownModel."""
        model = self.shelf.open(job.model)
        with self._changed:
            if self._closed:
                raise Ending
            if self.waiting + len(job.requests) > self.room.waiting + self._free(job.model):
                raise Full
            lane = self._lane(job.model, model)
            job.to_come = deque(job.requests)
            job.until = time.monotonic() + self.room.seconds
            lane.waiting.append(job)
            self._changed.notify()

    def ask(self, name: str, question: Callable[[GPT], Found]) -> Future[Found]:
        """`question(model)`, answered between two steps. Raises Full, and as `Shelf.open` does."""
        model, answer = self.shelf.open(name), Future[Found]()

        def run(model: GPT) -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(question(model))
                except Exception as error:
                    answer.set_exception(error)

        with self._changed:
            lane = self._lane(name, model)
            if self._closed:
                raise Ending
            if len(lane.tasks) >= self.room.waiting:
                raise Full
            lane.tasks.append(Task(run, answer.set_exception))
            self._changed.notify()
        return answer

    def cancel(self, requests: Collection[Request]) -> None:
        """Nobody waits for these rows any more: those that still are there are gone before the next step."""
        with self._changed:
            self._gone.update(requests)
            self._changed.notify()

    @property
    def running(self) -> int:
        return sum(len(lane.owner) for lane in list(self._lanes.values()))

    @property
    def waiting(self) -> int:
        return sum(len(job.to_come) for lane in list(self._lanes.values()) for job in list(lane.waiting))

    def close(self) -> None:
        """Take on nothing more, and end the thread; what still runs fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _lane(self, name: str, model: GPT) -> Lane:
        if name not in self._lanes or self._lanes[name].model is not model:
            self._lanes[name] = Lane(name, model, self.room)
        return self._lanes[name]

    def _free(self, name: str) -> int:
        lane = self._lanes.get(name)
        return self.room.rows - (len(lane.owner) if lane else 0)

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._changed:
                ready = self._ready()
                while not ready and not self._closed:
                    self._changed.wait(1.0)
                    ready = self._ready()
                if self._closed:
                    break
            for lane in ready:
                try:
                    self._turn(lane)
                except Exception as error:
                    if not isinstance(error, UserError):
                        log.exception("a step of %s failed", lane.name)
                    self._give_up(lane, error)
        for lane in self._lanes.values():
            self._give_up(lane, Ending())

    def _ready(self) -> list[Lane]:
        """Look at what has changed -> the lanes that may go on."""
        self._take_out_gone()
        names = self.shelf.names()
        for name, lane in list(self._lanes.items()):
            if name not in names:
                self._give_up(lane, UnknownModel(f'the model "{name}" has been taken away.'))
                del self._lanes[name]
        return [lane for lane in self._lanes.values() if lane.asked and self._may_go_on(lane)]

    def _may_go_on(self, lane: Lane) -> bool:
        """Rows that run are finished; new ones begin only where nobody asks for the model alone."""
        version = self.shelf.begin(lane.name)
        lane.may_begin = version is not None
        if version is not None:
            lane.begun, lane.version_now = True, version
        return lane.begun

    def _take_out_gone(self) -> None:
        now = time.monotonic()
        for lane in self._lanes.values():
            late = {job for job in (*lane.waiting, *lane.owner.values()) if job.until < now}
            self._drop(lane, self._gone | {request for job in late for request in job.requests})
            for job in late:
                job.fail(TimeoutError())
        self._gone.clear()

    def _drop(self, lane: Lane, gone: set[Request]) -> None:
        """Take rows out, whether they run or wait."""
        if not gone:
            return
        if lane.batch is not None and not gone.isdisjoint(lane.owner):
            lane.batch.cancel(gone)
        lane.owner = {request: job for request, job in lane.owner.items() if request not in gone}
        for job in lane.waiting:
            job.to_come = deque(request for request in job.to_come if request not in gone)
        lane.waiting = deque(job for job in lane.waiting if job.to_come)
        self._rest(lane)

    def _turn(self, lane: Lane) -> None:
        """One task, one step of a lane."""
        if lane.tasks and lane.may_begin:
            lane.tasks.popleft().run(lane.model)
        batch = lane.open_batch()
        if lane.may_begin and batch.free and (chosen := self._next_rows(lane, batch.free)):
            batch.admit(chosen)
            self._hand_out(lane, batch.fresh())
        if lane.owner:
            for _ in batch.step(refill=bool(lane.waiting)):
                pass  # what has finished has been handed out already
            self._hand_out(lane, batch.fresh())
        with self._changed:
            self._rest(lane)

    def _next_rows(self, lane: Lane, free: int) -> list[Request]:
        with self._changed:
            return lane.next_rows(free)

    def _rest(self, lane: Lane) -> None:
        """Let go of the model where nothing runs: whoever wants it alone has it now."""
        if lane.begun and not lane.owner:
            if lane.batch is not None:
                lane.batch.cancel(lane.batch.requests)  # rows that are finished and have not left yet
            lane.begun = False
            self.shelf.end(lane.name)

    def _hand_out(self, lane: Lane, fresh: Iterator[Fresh]) -> None:
        by_job: dict[Job, list[Fresh]] = {}
        for each in fresh:
            self.tokens += 1
            job = lane.owner.get(each.request)
            if job is None:
                continue
            written = [each]
            if not job.each_token:
                held = job.held.setdefault(each.request, [])
                held.append(each)
                written = job.held.pop(each.request) if each.finish_reason else []
            if each.finish_reason:
                del lane.owner[each.request]
            if written:
                by_job.setdefault(job, []).extend(written)
        for job, written in by_job.items():
            job.deliver(written)

    def _give_up(self, lane: Lane, error: Exception) -> None:
        """Nothing more comes for what this lane was asked; the next request finds it empty."""
        with self._changed:
            jobs = {*lane.waiting, *lane.owner.values()}
            tasks = list(lane.tasks)
            lane.waiting.clear()
            lane.owner.clear()
            lane.tasks.clear()
            lane.batch = None
            self._rest(lane)
        for job in jobs:
            job.fail(error)
        for task in tasks:
            task.give_up(error)
