"""A job of the scheduler's as the event loop sees it: tokens to wait for, and a reader who may leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nanogpt_edit.engine.completion import Fresh, Request
from nanogpt_edit.serving.lane import Job
from nanogpt_edit.serving.refusals import UNEXPECTED, told
from nanogpt_edit.serving.scheduler import Scheduler
from nanogpt_edit.serving.wire import event

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


class Gone(Exception):
    """The client has left; nobody will read the answer."""


class Running:
    """The rows of one request. Iterate to get their tokens as they come; leaving the iteration takes the rows back."""

    def __init__(self, scheduler: Scheduler, model: str, requests: Sequence[Request], *, each_token: bool) -> None:
        """Raises as `Scheduler.submit` does."""
        self.scheduler, self.requests = scheduler, requests
        self.open = set(requests)  # rows that are not finished
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._written: list[Fresh] = []
        self._error: Exception | None = None
        self.job = Job(model, requests, self._from_thread(self._deliver), self._from_thread(self._fail), each_token)
        scheduler.submit(self.job)

    def _from_thread(self, take: Callable[[Answer], None]) -> Callable[[Answer], None]:
        def call(found: Answer) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(take, found)

        return call

    def _deliver(self, written: list[Fresh]) -> None:
        self._written += written
        self._news.set()

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[list[Fresh]]:
        """Raises what the scheduler has failed with; TimeoutError: what has been written is all there will be."""
        try:
            while self.open:
                await self._news.wait()
                self._news.clear()
                written, self._written = self._written, []
                for each in written:
                    if each.finish_reason:
                        self.open.discard(each.request)
                if written:
                    yield written
                if self._error is not None:
                    raise self._error
        finally:
            self.stop(list(self.open))

    def stop(self, requests: Sequence[Request]) -> None:
        """These rows have written enough."""
        gone = self.open.intersection(requests)
        if gone:
            self.open -= gone
            self.scheduler.cancel(gone)


async def unless_gone(receive: Receive, answer: Coroutine[Any, Any, Answer]) -> Answer:
    """The answer; Gone, and the work on it ended, where the client leaves before it is there."""
    work, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(left(receive))
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Gone
        return work.result()
    finally:
        for task in (work, leaving):
            task.cancel()
        await asyncio.gather(work, leaving, return_exceptions=True)


async def left(receive: Receive) -> None:
    """Returns once the client has left; its body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events as they come. They end with the stream, with an error that is met on the way, or at once when
    the reader leaves."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self.events, self.first = events, b""

    async def begin(self, receive: Receive) -> EventStream:
        """Wait for the first event: until then a request may still be refused. Raises Gone."""
        self.first = await unless_gone(receive, anext(self.events))
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with suppress(Gone):
            await unless_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self.events):
            await send({"type": "http.response.body", "body": self.first, "more_body": True})
            async for each in self._to_the_end():
                await send({"type": "http.response.body", "body": each, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _to_the_end(self) -> AsyncIterator[bytes]:
        """The rest of the events; the status has been told, so an error is an event, too."""
        try:
            async for each in self.events:
                yield each
        except Exception as error:
            status, body, _ = told(error)
            if status == UNEXPECTED:
                log.exception("a stream broke")
            yield event(body)
