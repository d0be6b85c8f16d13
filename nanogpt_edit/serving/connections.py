"""Connections that wait: each has so long to bring a whole request and to take what is written, and no more are held
than so many."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanogpt_edit.serving.limits import Limits, error_body
from nanogpt_edit.serving.wire import to_json

LOOK_SECONDS = 1.0  # between two looks at who has waited too long
NOT_HTTP = error_body("this is no HTTP/1.1, or its headers are too large.")


class PatientProtocol(H11Protocol):
    """uvicorn's connection. It has a request from the moment that the request's head is there until it is answered."""

    limits: ClassVar[Limits]
    since = 0.0  # the loop's time at which it was opened, got its request, had given its answer, or its reader stopped
    watch: asyncio.TimerHandle | None = None

    @property
    def has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self.since = self.loop.time()
        self.look()
        if len(self.connections) > self.limits.connections:
            longest_waiting(self.connections).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.watch is not None:
            self.watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.has_request
        super().data_received(data)
        if self.has_request and not before:
            self.since = self.loop.time()

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self.since = self.loop.time()
        super().pause_writing()

    def look(self) -> None:
        """Close it where it has waited too long, for a request or for its reader, or look again later."""
        most = self.limits.reader_seconds if self.has_request else self.limits.patience_seconds
        left = self.since + most - self.loop.time()
        if self.has_request and not self.flow.write_paused:
            left = LOOK_SECONDS
        if left <= 0:
            return self.transport.abort() if self.has_request else self.transport.close()
        self.watch = self.loop.call_later(min(LOOK_SECONDS, left), self.look)

    def send_400_response(self, msg: str) -> None:
        """What the library says of a request that is none, as everything else is said."""
        body = to_json(NOT_HTTP)
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            events = (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(filter(None, map(self.conn.send, events))))
        self.transport.close()


def longest_waiting(connections: Iterable[object]) -> PatientProtocol:
    """Of those without a request the one that has been without it longest; where all have one, the newest."""
    every = [each for each in connections if isinstance(each, PatientProtocol)]
    idle = [each for each in every if not each.has_request]
    return min(idle or every, key=lambda each: each.since if idle else -each.since)


def patient(limits: Limits) -> type[PatientProtocol]:
    """The protocol for these limits."""
    return type("Patient", (PatientProtocol,), {"limits": limits})
