"""A request's body, read as strictly as every other JSON here, and what is wrong with it in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from nanogpt_edit.common.files import parse_json


class StrictRequest(Request):
    """A request whose JSON has no NaN, no key twice, no half of a character, and is nested as deeply as can be read."""

    async def json(self) -> object:
        try:
            return parse_json((await self.body()).decode("utf-8-sig"))
        except ValueError as error:
            raise HTTPException(400, f"the request is not valid JSON ({error})") from None


class JsonRoute(APIRoute):
    """A route whose body is JSON, and said to be: a page of another site cannot send that without asking first."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if self.body_field is not None and kind != "application/json":
                raise HTTPException(415, f'Content-Type is "{kind[:60]}"; send application/json')
            return await inner(StrictRequest(request.scope, request.receive))

        return handle


def sentence_of(error: RequestValidationError) -> tuple[str, str | None]:
    """What is wrong with a body, and with which field of it."""
    every = error.errors()  # of a field that may be of several types one for each: those it is not are no news
    found = next((each for each in every if not each["type"].endswith("_type")), every[0])
    where = [str(part) for part in found["loc"] if part != "body"]
    field = where[0] if where else None
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        return f'unknown field "{field}"; take it out.', field
    if field is None and found["type"] == "missing":
        return "the request is empty; send JSON.", None
    if found["type"] == "missing":
        return f'the field "{field}" is missing.', field
    return f"{field or 'the request'}: {message[:1].lower()}{message[1:]}.", field
