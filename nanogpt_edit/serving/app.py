"""The application: the routes, what guards them, and errors in the shape that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.version import __version__
from nanogpt_edit.serving.json_body import sentence_of
from nanogpt_edit.serving.limits import Guard, Limits, error_body
from nanogpt_edit.serving.metrics import Counted, Metrics
from nanogpt_edit.serving.models import Shelf, UnknownModel
from nanogpt_edit.serving.openai.reading import TooLong
from nanogpt_edit.serving.openai.routes import routes
from nanogpt_edit.serving.playground.desk import Desk
from nanogpt_edit.serving.playground.routes import playground
from nanogpt_edit.serving.scheduler import Ending, Full, Scheduler
from nanogpt_edit.serving.wire import Json, to_json
from nanogpt_edit.serving.writer import Room


def make_app(shelf: Shelf, *, limits: Limits | None = None, room: Room | None = None) -> FastAPI:
    """The application over a shelf of models. Its thread ends with it (ASGI's lifespan)."""
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
    for kind in (UserError, RequestValidationError, HTTPException, Full, Ending, Exception):
        app.add_exception_handler(kind, refuse)
    return app


async def refuse(request: Request, error: Exception) -> Response:
    """An error as an answer."""
    status, body, headers = told(error)
    return Response(to_json(body), status, headers=headers, media_type="application/json")


def told(error: Exception) -> tuple[int, Json, dict[str, str]]:
    """(status, body, headers) of an error."""
    if isinstance(error, UnknownModel):
        return 404, error_body(str(error), param="model", code="model_not_found"), {}
    if isinstance(error, UserError):
        code = "context_length_exceeded" if isinstance(error, TooLong) else None
        return 400, error_body(str(error), param=error.field or None, code=code), {}
    if isinstance(error, RequestValidationError):
        return 400, error_body(*sentence_of(error)), {}
    if isinstance(error, HTTPException):
        return error.status_code, error_body(f"{error.detail}."), dict(error.headers or {})
    if isinstance(error, Full):
        sentence = "the server has as many texts to write as it takes on; ask again in a second."
        return 429, error_body(sentence, kind="rate_limit_error", code="overloaded"), {"Retry-After": "1"}
    if isinstance(error, Ending):
        return 503, error_body("the server is being ended.", kind="server_error"), {"Retry-After": "10"}
    return 500, error_body("the server failed at this request; its terminal says where.", kind="server_error"), {}
