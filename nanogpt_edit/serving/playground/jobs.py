"""Long work for a page: done in a thread, its progress streamed as events, given up when the page leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict, is_dataclass
from threading import Event, Thread

from starlette.requests import Request
from starlette.responses import Response

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.terminal import say, told_to
from nanogpt_edit.serving.limits import error_body
from nanogpt_edit.serving.running import EventStream, Gone
from nanogpt_edit.serving.wire import DONE, Json, event

SECONDS_BETWEEN = 0.1
FAILED = "the server failed at this; its terminal says where."


class Left(Exception):
    """Nobody waits for the result any more."""


class Job:
    """One piece of work and who hears of it."""

    def __init__(self, work: Callable[[Job], Json]) -> None:
        self.work, self.left = work, Event()
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue[Json | Exception | None]()
        self._told = 0.0

    def still_wanted(self) -> None:
        """Raises Left where the page has gone."""
        if self.left.is_set():
            raise Left

    def progress(self, phase: str, done: int, of: int | None) -> None:
        """Tell the page, now and then."""
        self.still_wanted()
        now = time.perf_counter()
        if now - self._told >= SECONDS_BETWEEN:
            self._told = now
            self.tell({"event": "progress", "phase": phase, "done": done, "of": of})

    def tell(self, news: Json | Exception | None) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.queue.put_nowait, news)

    def run(self) -> None:
        """In a thread of its own."""
        try:
            with told_to(self.progress):
                self.tell({"event": "done", **self.work(self)})
        except Left:
            say("The page has gone; what it asked for is given up.")
        except UserError as error:
            self.tell(error)
        except Exception:
            self.tell(UserError(FAILED))
            raise
        finally:
            self.tell(None)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """What happens, as it does. An error before anything else is raised, for then there is a status to tell it."""
        Thread(target=self.run, name="job", daemon=True).start()
        try:
            begun = False
            while (news := await self.queue.get()) is not None:
                if isinstance(news, Exception):
                    if not begun:
                        raise news
                    news = error_body(str(news))
                yield event(news)
                begun = True
            yield DONE
        finally:
            self.left.set()


async def streamed(request: Request, work: Callable[[Job], Json]) -> Response:
    """`work` in a thread; its result is the last event. It is told to stop when the client leaves."""
    try:
        return await EventStream(Job(work).events()).begin(request.receive)
    except Gone:
        return Response(status_code=499)  # nobody reads it


def plain(record: object) -> Json:
    """A record as JSON has it."""
    assert is_dataclass(record) and not isinstance(record, type)
    return asdict(record)
