"""Who is written for next: requests come at any time and share each model's rows.

A thread gives the writer (`writer.py`) rows for its free slots, and hands out what it has written. Of the requests for
one model none waits behind another that asks for many texts: slots are given out in turn, a row at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any, TypeVar

from nanogpt_edit.common.errors import reason_of
from nanogpt_edit.engine.completion import Fresh, Request
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.lane import Job, Lane, Question
from nanogpt_edit.serving.messages import (
    Answer,
    Ask,
    Begin,
    Cancel,
    Close,
    Failed,
    Open,
    Renew,
    Report,
    Token,
    Writer,
    WriterEnded,
    key_of,
)
from nanogpt_edit.serving.models import Shelf, UnknownModel
from nanogpt_edit.serving.room import Room
from nanogpt_edit.serving.writer import ThreadWriter
from nanogpt_edit.serving.writer_process import ProcessWriter

Found = TypeVar("Found")
log = logging.getLogger(__name__)


class Full(Exception):
    """Too much is waiting already."""


class Ending(Exception):
    """The server is being ended."""


class Scheduler:
    """Owns the thread, and the writer. Jobs may be submitted and cancelled from any other."""

    def __init__(self, shelf: Shelf, room: Room | None = None) -> None:
        """The writer is a process where the shelf's weights can be shared with one, else a thread."""
        self.shelf, self.room = shelf, room or Room()
        self._lanes: dict[str, Lane] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._numbers = count()  # of questions
        self.tokens = 0  # written since the start
        self._writer = self._new_writer()
        shelf.on_change = self._wake
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def _new_writer(self) -> Writer:
        shared = self.shelf.shared
        return ThreadWriter(self.room) if shared is None else ProcessWriter(self.room, shared)

    def submit(self, job: Job) -> None:
        """Take on a job of a model that is loaded. Raises Full, and UnknownModel."""
        model = self.shelf.open(job.model)
        with self._changed:
            if self._closed:
                raise Ending
            lane = self._lane(job.model, model)
            if self.waiting + len(job.requests) > self.room.waiting + lane.free:
                raise Full
            job.to_come = deque(job.requests)
            job.until = time.monotonic() + self.room.seconds
            lane.waiting.append(job)
            known = lane.version is not None and not self._writer.ended
            if known and self._may_go_on(lane) and lane.may_begin:
                self._begin_rows(lane)  # at once: the thread may be waiting for the end of a step
            self._changed.notify()

    def ask(self, name: str, question: Callable[[GPT], Found]) -> Future[Found]:
        """`question(model)`, answered between two steps, perhaps in another process. Raises as `submit` does."""
        model, answer = self.shelf.open(name), Future[Found]()
        with self._changed:
            lane = self._lane(name, model)
            if self._closed:
                raise Ending
            if len(lane.questions) >= self.room.waiting:
                raise Full
            lane.questions.append(Question(question, answer))
            self._changed.notify()
        return answer

    def cancel(self, requests: Collection[Request]) -> None:
        """Nobody waits for these rows any more: those that are being written are gone before the next step."""
        with self._changed:
            for lane in self._lanes.values():
                self._drop(lane, set(requests))
            self._changed.notify()

    @property
    def running(self) -> int:
        return sum(len(lane.owner) for lane in list(self._lanes.values()))

    @property
    def waiting(self) -> int:
        return sum(len(job.to_come) for lane in list(self._lanes.values()) for job in list(lane.waiting))

    def close(self) -> None:
        """Take on nothing more, and end the thread and the writer; what still runs fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _lane(self, name: str, model: GPT) -> Lane:
        if name in self._lanes and self._lanes[name].model is not model:
            self._take_away(name)
        if name not in self._lanes:
            self._lanes[name] = Lane(name, model, self.room)
        return self._lanes[name]

    def _take_away(self, name: str) -> None:
        """The model of that name is offered no more."""
        self._give_up(self._lanes.pop(name), UnknownModel(f'the model "{name}" has been taken away.'))
        self._writer.tell(Close(name))

    def _run(self) -> None:
        while not self._closed:
            try:
                self._go_on()
            except WriterEnded as error:
                self._begin_again(error)
            except Exception as error:
                log.exception("the scheduler failed")
                with self._changed:
                    for lane in self._lanes.values():
                        self._give_up(lane, error)
        self._writer.end()
        with self._changed:
            for lane in self._lanes.values():
                self._lose(lane, Ending())

    def _go_on(self) -> None:
        """Wait until there is something to do, give the writer its part, and hear it once."""
        with self._changed:
            ready = self._ready()
            while not ready and not self._closed:
                self._changed.wait(1.0)
                ready = self._ready()
        if self._closed:
            return
        for lane in ready:
            self._turn(lane)
        if any(lane.at_work for lane in ready):
            self._take(self._writer.hear())

    def _ready(self) -> list[Lane]:
        """Look at what has changed -> the lanes that may go on."""
        self._cut_late()
        for name in self._lanes.keys() - set(self.shelf.names()):
            self._take_away(name)
        return [lane for lane in self._lanes.values() if lane.wanted and self._may_go_on(lane)]

    def _may_go_on(self, lane: Lane) -> bool:
        """Rows that run are finished; new ones begin only where nobody asks for the model alone."""
        version = self.shelf.begin(lane.name)
        lane.may_begin = version is not None
        if version is not None:
            lane.begun, lane.version_now = True, version
        return lane.begun

    def _cut_late(self) -> None:
        """End the jobs that have had their time."""
        now = time.monotonic()
        for lane in self._lanes.values():
            late = {job for job in (*lane.waiting, *lane.owner.values()) if job.until < now}
            self._drop(lane, {request for job in late for request in job.requests})
            for job in late:
                job.fail(TimeoutError())

    def _drop(self, lane: Lane, gone: set[Request]) -> None:
        """Take rows out, whether they run or wait. The writer has them until it says that they are gone."""
        running = [key_of(request) for request in gone if lane.owner.pop(request, None)]
        if running:
            self._writer.tell(Cancel(lane.name, running))
        if not gone:
            return
        for job in lane.waiting:
            job.to_come = deque(request for request in job.to_come if request not in gone)
        lane.waiting = deque(job for job in lane.waiting if job.to_come)
        self._rest(lane)

    def _turn(self, lane: Lane) -> None:
        """Give the writer one question, and rows for its free slots."""
        if self._writer.ended:
            raise WriterEnded("the process that writes texts has ended")
        with self._changed:
            if lane.begun and lane.may_begin:  # it may have been told to rest since it was found ready
                if lane.questions:
                    self._put(lane, lane.questions.popleft())
                self._begin_rows(lane)
            self._rest(lane)

    def _begin_rows(self, lane: Lane) -> None:
        if chosen := lane.next_rows():
            self._tell_weights(lane)
            self._writer.tell(Begin(lane.name, chosen))

    def _put(self, lane: Lane, question: Question) -> None:
        if not question.answer.set_running_or_notify_cancel():
            return
        number = next(self._numbers)
        try:
            self._tell_weights(lane)
            self._writer.tell(Ask(lane.name, number, question.ask))
        except Exception as error:  # it cannot be pickled
            question.answer.set_exception(error)
        else:
            lane.asked[number] = question.answer

    def _tell_weights(self, lane: Lane) -> None:
        """Before what needs them: while the writer is at work, nobody takes the model away."""
        if lane.version is None:
            self._writer.tell(Open(lane.name, lane.model))
        elif lane.version != lane.version_now:
            self._writer.tell(Renew(lane.name))
        lane.version = lane.version_now

    def _rest(self, lane: Lane) -> None:
        """Let go of the model where nothing runs: whoever wants it alone has it now."""
        if lane.begun and not lane.at_work:
            lane.begun = False
            self.shelf.end(lane.name)

    def _take(self, report: Report) -> None:
        """Hand out what has been written."""
        with self._changed:
            lane = self._lanes.get(report.name)
            if lane is None:
                return
            if isinstance(report, Failed):
                return self._give_up(lane, report.error)
            if isinstance(report, Answer):
                if asked := lane.asked.pop(report.number, None):
                    settle(asked, report)
            else:
                for key in report.gone:
                    lane.rows.pop(key, None)
                self._hand_out(lane, report.tokens)
            self._rest(lane)

    def _hand_out(self, lane: Lane, tokens: Sequence[Token]) -> None:
        by_job: dict[Job, list[Fresh]] = {}
        for token in tokens:
            self.tokens += 1
            request = lane.rows.pop(token.key, None) if token.finish_reason else lane.rows.get(token.key)
            job = None if request is None else lane.owner.get(request)
            if request is None or job is None:
                continue
            written = [Fresh(request, token.token_id, token.look, token.finish_reason)]
            if not job.each_token:
                held = job.held.setdefault(request, [])
                held += written
                written = job.held.pop(request) if token.finish_reason else []
            if token.finish_reason:
                del lane.owner[request]
            if written:
                by_job.setdefault(job, []).extend(written)
        for job, written in by_job.items():
            job.deliver(written)

    def _give_up(self, lane: Lane, error: Exception) -> None:
        """Nothing more comes for what this lane was asked; the next request finds it empty."""
        jobs, questions = {*lane.waiting, *lane.owner.values()}, list(lane.questions)
        lane.waiting.clear()
        lane.owner.clear()
        lane.questions.clear()
        if lane.rows:
            self._writer.tell(Cancel(lane.name, list(lane.rows)))
        self._rest(lane)
        for job in jobs:
            job.fail(error)
        for question in questions:
            if question.answer.set_running_or_notify_cancel():
                question.answer.set_exception(error)

    def _lose(self, lane: Lane, error: Exception) -> None:
        """The writer has nothing of this lane any more."""
        for answer in lane.asked.values():
            answer.set_exception(error)
        lane.rows.clear()
        lane.asked.clear()
        self._give_up(lane, error)

    def _begin_again(self, error: WriterEnded) -> None:
        """With a new writer; what the old one was at fails. Where none can be started, so does what waits, and the
        next request is another try."""
        log.error("%s; a new one is started.", error)
        self._writer.end()
        with self._changed:
            for lane in self._lanes.values():
                lane.version = None
                if lane.at_work:
                    self._lose(lane, error)
            try:
                self._writer = self._new_writer()
            except OSError as trouble:
                log.error("it cannot be started (%s).", reason_of(trouble))
                for lane in self._lanes.values():
                    self._give_up(lane, error)


def settle(future: Future[Any], answer: Answer) -> None:
    """Give a future what it waits for."""
    if answer.error is None:
        future.set_result(answer.found)
    else:
        future.set_exception(answer.error)
