"""What the server has done, in Prometheus's text format."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanogpt_edit.serving.scheduler import Scheduler

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Work(Collector):
    """What the scheduler is at, read when it is asked for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        yield GaugeMetricFamily("nanogpt_edit_texts_running", "Texts that are being written", self.scheduler.running)
        yield GaugeMetricFamily("nanogpt_edit_texts_waiting", "Texts that wait for a slot", self.scheduler.waiting)
        yield CounterMetricFamily("nanogpt_edit_tokens", "Tokens written", value=self.scheduler.tokens)


class Metrics:
    """The counts, and how they are shown."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(Work(scheduler))
        self.requests = Counter(
            "nanogpt_edit_requests", "Requests answered", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "nanogpt_edit_request_seconds",
            "From a request to the end of its answer",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )

    def show(self) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


class Counted:
    """Counts and times requests, refused ones too (ASGI)."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, status = time.perf_counter(), "none"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # the route's: those that people ask for have no end
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - begun)
