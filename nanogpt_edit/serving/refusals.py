"""Errors as answers, in the shape that OpenAI's clients read."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.serving.json_body import sentence_of
from nanogpt_edit.serving.limits import error_body
from nanogpt_edit.serving.messages import WriterEnded
from nanogpt_edit.serving.models import UnknownModel
from nanogpt_edit.serving.openai.reading import TooLong
from nanogpt_edit.serving.scheduler import Ending, Full
from nanogpt_edit.serving.wire import Json, to_json

UNEXPECTED = 500  # the status of an error that nobody has foreseen


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
    if isinstance(error, WriterEnded):
        sentence = "the process that writes texts has ended, and this answer with it; ask again."
        return 503, error_body(sentence, kind="server_error"), {"Retry-After": "1"}
    sentence = "the server failed at this request; its terminal says where."
    return UNEXPECTED, error_body(sentence, kind="server_error"), {}
