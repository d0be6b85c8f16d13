"""/v1: the part of OpenAI's API that a language model on its own can answer, whole or streamed.

A completion ends as `ne.generate` ends it: at `</answer>`, at the end of a text, or after `max_tokens`. With the same
seed its texts are those of `ne.generate`: sample s of prompt p has the random numbers of (seed, p, s).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from nanogpt_edit.serving.json_body import JsonRoute
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.openai.reading import Reader
from nanogpt_edit.serving.openai.replies import Head
from nanogpt_edit.serving.openai.schemas import (
    ChatReply,
    ChatRequest,
    CompletionReply,
    CompletionRequest,
    ErrorReply,
    ModelCard,
    ModelList,
)
from nanogpt_edit.serving.openai.writing import (
    chat_events,
    completion_events,
    look_at_prompts,
    whole_chat,
    whole_completion,
)
from nanogpt_edit.serving.running import EventStream, Gone, unless_gone
from nanogpt_edit.serving.scheduler import Scheduler
from nanogpt_edit.serving.wire import Json, to_json

CLIENT_HAS_LEFT = 499  # nginx's word for it; nobody reads it
REFUSALS: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorReply} for status in (400, 401, 403, 404, 408, 413, 415, 429)
}


def routes(shelf: Shelf, scheduler: Scheduler) -> APIRouter:
    """The router of /v1."""
    router, reader = APIRouter(prefix="/v1", route_class=JsonRoute), Reader(shelf, scheduler.room)
    started = int(time.time())

    @router.get("/models", response_model=ModelList)
    async def models() -> Response:
        return json_response({"object": "list", "data": [card(name) for name in shelf.names()]})

    @router.get("/models/{name:path}", response_model=ModelCard, responses={404: {"model": ErrorReply}})
    async def model(name: str) -> Response:
        shelf.is_open(name)  # raises for an unknown one
        return json_response(card(name))

    def card(name: str) -> Json:
        parent = shelf.parent(name)
        return {"id": name, "object": "model", "created": started, "owned_by": "nanogpt_edit", "parent": parent}

    @router.post("/completions", response_model=CompletionReply, responses=REFUSALS)
    async def completions(body: CompletionRequest, request: HttpRequest) -> Response:
        asked = await reader.completion(body, request)
        await look_at_prompts(scheduler, asked)
        head = Head(f"cmpl-{secrets.token_hex(12)}", int(time.time()), asked.name)
        if body.stream:
            return await streamed(request, completion_events(scheduler, asked, head))
        return await answered(request, whole_completion(scheduler, asked, head))

    @router.post("/chat/completions", response_model=ChatReply, responses=REFUSALS)
    async def chat(body: ChatRequest, request: HttpRequest) -> Response:
        asked = await reader.chat(body, request)
        head = Head(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), asked.name)
        if body.stream:
            return await streamed(request, chat_events(scheduler, asked, head))
        return await answered(request, whole_chat(scheduler, asked, head))

    return router


async def answered(request: HttpRequest, answer: Coroutine[Any, Any, Json]) -> Response:
    """An answer given at once, unless the client leaves before."""
    try:
        return json_response(await unless_gone(request.receive, answer))
    except Gone:
        return Response(status_code=CLIENT_HAS_LEFT)


async def streamed(request: HttpRequest, events: AsyncGenerator[bytes, None]) -> Response:
    """An answer given as it is written."""
    try:
        return await EventStream(events).begin(request.receive)
    except Gone:
        return Response(status_code=CLIENT_HAS_LEFT)


def json_response(value: Json) -> Response:
    """JSON in UTF-8."""
    return Response(to_json(value), media_type="application/json")
