"""The playground's traces over HTTP: where one answer is recalled, and what every layer would say."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.serving.json_body import JsonRoute
from nanogpt_edit.serving.playground.desk import Desk
from nanogpt_edit.serving.playground.jobs import Job, plain, streamed
from nanogpt_edit.serving.playground.twin import twin
from nanogpt_edit.serving.wire import Json
from nanogpt_edit.tracing.config import TraceConfig
from nanogpt_edit.tracing.lens import logit_lens
from nanogpt_edit.tracing.tracing import Traced, trace

MOST_DRAWS = 32


@dataclass(frozen=True)
class NewTrace:
    """What POST /api/trace takes; without an `answer`, what the model itself says next is followed."""

    model: str
    prompt: str
    subject: str
    answer: str = ""
    draws: int = 8


def trace_routes(desk: Desk) -> APIRouter:
    """POST /api/trace."""
    routes = APIRouter(prefix="/api", route_class=JsonRoute)

    @routes.post("/trace")
    async def run(request: Request, asked: NewTrace) -> Response:
        if not 1 <= asked.draws <= MOST_DRAWS:
            raise UserError(f"draws is {asked.draws}; 1 to {MOST_DRAWS} can be asked for here.")
        model = desk.shelf.open(asked.model)

        def work(job: Job) -> Json:
            with desk.working(job.still_wanted):
                quiet, config = twin(model), TraceConfig(draws=asked.draws)
                answer = asked.answer.strip() or None
                found = trace(quiet, asked.prompt, asked.subject, answer, config)
                return {"trace": grids(found), "lens": plain(logit_lens(quiet, asked.prompt, answer))}

        return await streamed(request, work)

    return routes


def grids(found: Traced) -> Json:
    """A trace as JSON has it."""
    return {
        "tokens": found.tokens,
        "subject_first": found.subject_first,
        "subject_last": found.subject_last,
        "target": found.target,
        "clean_p": found.clean_p,
        "corrupted_p": found.corrupted_p,
        "effect": {site: grid.tolist() for site, grid in found.effect.items()},
    }
