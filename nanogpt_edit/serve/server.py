"""One model behind HTTP, on this machine only unless told otherwise.

    GET  /             the playground page
    GET  /v1/model     what the model is: {"source", "parameters", "block_size", "lineage"}
    POST /v1/generate  {"prompt", "n", "temperature", "top_k", "top_p", "max_new_tokens", "seed"} ->
                       {"completions": [{"text", "finish_reason", "tokens"}]}

A bad request is answered with status 400 and {"error": a sentence}. Requests are served one after the other: the model
fills the machine by itself.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import resources

from nanogpt_edit.engine.sampling import Sampling
from nanogpt_edit.errors import UserError
from nanogpt_edit.generation import generate
from nanogpt_edit.model.gpt import GPT

LARGEST_REQUEST_BYTES = 1 << 20
MOST_COMPLETIONS = 64
LAST_PORT = 65_535
FIELDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "n": (int,),
    "temperature": (int, float),
    "top_k": (int, type(None)),
    "top_p": (int, float),
    "max_new_tokens": (int,),
    "seed": (int,),
}


def make_server(model: GPT, source: str, *, host: str = "127.0.0.1", port: int = 8000) -> HTTPServer:
    """A server for `model`; port 0 takes a free one. Raises UserError when the port is taken."""
    page = (resources.files("nanogpt_edit.serve") / "playground.html").read_bytes()
    about = {
        "source": source,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "block_size": model.config.block_size,
        "lineage": list(model.lineage),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self.answer(200, page, "text/html; charset=utf-8")
            elif self.path == "/v1/model":
                self.answer_json(200, about)
            else:
                self.answer_json(404, {"error": f"there is nothing at {self.path}; try / or /v1/model."})

        def do_POST(self) -> None:
            if self.path != "/v1/generate":
                self.answer_json(404, {"error": f"nothing can be posted to {self.path}; use /v1/generate."})
                return
            try:
                self.answer_json(200, {"completions": complete(model, self.body())})
            except UserError as error:
                self.answer_json(400, {"error": str(error)})

        def body(self) -> bytes:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= LARGEST_REQUEST_BYTES:
                raise UserError(f"the request has {length} bytes; 1 to {LARGEST_REQUEST_BYTES} are read.")
            return self.rfile.read(length)

        def answer_json(self, status: int, value: object) -> None:
            self.answer(status, json.dumps(value, ensure_ascii=False).encode(), "application/json")

        def answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not logged."""

    if not 0 <= port <= LAST_PORT:
        raise UserError(f"port is {port}; a port is a number from 0 (any that is free) to {LAST_PORT}.")
    try:
        return HTTPServer((host, port), Handler)
    except OSError as error:
        reason = (error.strerror or "failed").lower()
        raise UserError(f"{host}:{port} cannot be listened on ({reason}); choose another --host or --port.") from None


def complete(model: GPT, body: bytes) -> list[dict[str, object]]:
    """The completions a request asks for. Raises UserError, in one sentence, for a request that cannot be met."""
    try:
        request = json.loads(body)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the request is not valid JSON ({error}).") from None
    if not isinstance(request, dict) or not str(request.get("prompt", "")).strip():
        raise UserError('the request must be a JSON object with a "prompt".')
    for name, value in request.items():
        if name not in FIELDS:
            raise UserError(f'unknown field "{name}"; a request has {", ".join(FIELDS)}.')
        if not isinstance(value, FIELDS[name]) or isinstance(value, bool):
            raise UserError(f'"{name}" is {value!r}, of the wrong type.')
    settings = {name: value for name, value in request.items() if name not in ("prompt", "n")}
    Sampling(**settings)  # says what is wrong with a number
    n = request.get("n", 1)
    if not 1 <= n <= MOST_COMPLETIONS:
        raise UserError(f'"n" is {n}; 1 to {MOST_COMPLETIONS} completions can be asked for.')
    found = generate(model, request["prompt"], n=n, **settings)
    return [{"text": one.text, "finish_reason": one.finish_reason, "tokens": len(one.token_ids)} for one in found]
