"""The application: the routes, and what guards them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.version import __version__
from nanogpt_edit.serving.limits import Guard, Limits
from nanogpt_edit.serving.messages import WriterEnded
from nanogpt_edit.serving.metrics import Counted, Metrics
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.openai.routes import routes
from nanogpt_edit.serving.playground.desk import Desk
from nanogpt_edit.serving.playground.routes import playground
from nanogpt_edit.serving.refusals import refuse
from nanogpt_edit.serving.room import Room
from nanogpt_edit.serving.scheduler import Ending, Full, Scheduler


def make_app(shelf: Shelf, *, limits: Limits | None = None, room: Room | None = None) -> FastAPI:
    """The application over a shelf of models. Its threads and what writes for it end with its lifespan (ASGI's)."""
    scheduler, desk = Scheduler(shelf, room), Desk(shelf)
    metrics = Metrics(scheduler)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.end()
        await run_in_threadpool(scheduler.close)

    app = FastAPI(title="nanogpt_edit", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.include_router(routes(shelf, scheduler))
    app.include_router(playground(desk))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    async def show_metrics() -> Response:
        return metrics.show()

    app.add_middleware(Guard, limits=limits or Limits())
    app.add_middleware(Counted, metrics=metrics)
    for kind in (UserError, RequestValidationError, HTTPException, Full, Ending, WriterEnded, Exception):
        app.add_exception_handler(kind, refuse)
    return app
