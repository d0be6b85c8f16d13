"""One model behind HTTP, on this machine only unless told otherwise.

    GET  /             the playground page
    GET  /v1/model     what the model is: {"source", "parameters", "block_size", "lineage"}
    POST /v1/generate  {"prompt", "n", "temperature", "top_k", "top_p", "max_new_tokens", "seed"} ->
                       {"completions": [{"text", "finish_reason", "tokens"}]}

A bad request is answered with a status of 400 or more and {"error": a sentence}. Every connection has a thread, so
that a slow one keeps nobody waiting; texts are written one request after the other, for the model fills the machine by
itself. On an address of this machine only, requests that come through a foreign name or page are refused: else any page
in the browser could ask (DNS rebinding).
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from ipaddress import ip_address
from socket import socket
from threading import Lock

from nanogpt_edit.common.errors import MOST_QUOTED, UserError
from nanogpt_edit.common.files import parse_json
from nanogpt_edit.common.records import Place, to_dataclass
from nanogpt_edit.engine.generate import generate
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.gpt import GPT

LARGEST_REQUEST_BYTES = 1 << 20
MOST_COMPLETIONS = 64
HOST_PORT = re.compile(r":\d+$")
LAST_PORT = 65_535
PATHS = {"/": "GET", "/v1/model": "GET", "/v1/generate": "POST"}
PATIENCE_SECONDS = 20.0  # for a request to arrive, and between two bytes of it


@dataclass(frozen=True, kw_only=True)
class Request(Sampling):
    """What POST /v1/generate takes."""

    prompt: str
    n: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt.strip():
            raise UserError("the prompt is empty; give some text.")
        if not 1 <= self.n <= MOST_COMPLETIONS:
            raise UserError(f"n is {self.n}; 1 to {MOST_COMPLETIONS} completions can be asked for.")


class Refused(Exception):
    """A request that is not answered: the status, a sentence for whoever sent it, and what the path would `allow`."""

    def __init__(self, status: int, sentence: str, *, allow: str = "") -> None:
        super().__init__(sentence)
        self.status, self.allow = status, allow


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.patience_seconds)

    def do_GET(self) -> None:
        self.answering(self.show)

    def do_POST(self) -> None:
        self.answering(self.complete)

    def answering(self, answer: Callable[[], None]) -> None:
        """Answer, or say why not; what nobody foresaw is said here and shown in the terminal."""
        try:
            check_sender(self.headers.get("Host"), self.headers.get("Origin"), here_only=self.server.here_only)
            answer()
        except Refused as refused:
            self.answer_json(refused.status, {"error": str(refused)}, allow=refused.allow)
        except UserError as error:
            self.answer_json(400, {"error": str(error)})
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            self.answer_json(500, {"error": "the server failed at this request; its terminal says where."})
            raise

    def show(self) -> None:
        if self.path == "/":
            self.answer(200, self.server.page, "text/html; charset=utf-8")
        elif self.path == "/v1/model":
            self.answer_json(200, self.server.about)
        else:
            raise self.nothing("GET")

    def complete(self) -> None:
        if self.path != "/v1/generate":
            raise self.nothing("POST")
        body = self.body(body_length(self.headers.get_all("Content-Length", [])))
        with self.server.writing:
            completions = complete(self.server.model, body)
        self.answer_json(200, {"completions": completions})

    def nothing(self, method: str) -> Refused:
        """Why a request is not answered: another method is for this path, or there is nothing at it."""
        if self.path in PATHS:
            return Refused(405, f"{self.path} takes {PATHS[self.path]}, not {method}.", allow=PATHS[self.path])
        known = ", ".join(f"{allowed} {path}" for path, allowed in PATHS.items())
        return Refused(404, f"there is nothing at {self.path[:MOST_QUOTED]}; there are {known}.")

    def body(self, length: int) -> bytes:
        """The request's body. Raises Refused where it ends early, or does not arrive in time."""
        found, patience = b"", self.server.patience_seconds
        until = time.monotonic() + patience
        try:
            while len(found) < length and (part := self.rfile.read1(length - len(found))):
                found += part
                if time.monotonic() > until:
                    raise TimeoutError
        except TimeoutError:
            raise Refused(408, f"{len(found)} of {length} bytes came within {patience:g} s; send faster.") from None
        if len(found) < length:
            raise Refused(400, f"the request ended after {len(found)} of {length} bytes; send all of them.")
        return found

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library finds wrong, as everything else: a line that is no HTTP, a verb that is not served."""
        self.close_connection, self.request_version = True, self.protocol_version
        status, allow = (405, "GET, POST") if code == HTTPStatus.NOT_IMPLEMENTED else (code, "")
        sentence = f"{message or HTTPStatus(code).phrase}; use GET or POST over HTTP/1.1."
        self.answer_json(status, {"error": sentence}, allow=allow)

    def answer_json(self, status: int, value: object, *, allow: str = "") -> None:
        self.answer(status, json.dumps(value, ensure_ascii=False).encode(), "application/json", allow=allow)

    def answer(self, status: int, body: bytes, kind: str, *, allow: str = "") -> None:
        self.send_response(status)
        if allow:
            self.send_header("Allow", allow)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


class Server(ThreadingHTTPServer):
    """What the connections share; their threads end with the program, and a client that has gone is no error."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], model: GPT, source: str, *, patience_seconds: float) -> None:
        super().__init__(address, Handler)
        self.model, self.writing, self.patience_seconds = model, Lock(), patience_seconds
        self.here_only = is_here(address[0])
        self.page = (resources.files("nanogpt_edit.serving") / "playground.html").read_bytes()
        self.about = {
            "source": source,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "block_size": model.config.block_size,
            "lineage": list(map(str, model.lineage)),
        }

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def make_server(
    model: GPT, source: str, *, host: str = "127.0.0.1", port: int = 8000, patience_seconds: float = PATIENCE_SECONDS
) -> Server:
    """A server for `model`; port 0 takes a free one. Raises UserError when the port is taken."""
    if not 0 <= port <= LAST_PORT:
        raise UserError(f"port is {port}; a port is a number from 0 (any that is free) to {LAST_PORT}.")
    try:
        return Server((host, port), model, source, patience_seconds=patience_seconds)
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or "it is no address").lower()
        raise UserError(f"{host}:{port} cannot be listened on ({reason}); choose another --host or --port.") from None


def is_here(host: str) -> bool:
    """Is this a name or an address that only this machine can be reached by?"""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_sender(host: str | None, origin: str | None, *, here_only: bool) -> None:
    """Raise Refused for a request by a name that is not this machine's, or from another site's page."""
    if here_only and host is not None and not is_here(HOST_PORT.sub("", host)):
        raise Refused(403, f'the request is for "{host}" and this server is for this machine only; use 127.0.0.1.')
    if origin is not None and origin.partition("://")[2] != host:
        raise Refused(403, f'the request comes from a page of "{origin}"; only the server\'s own page may ask.')


def body_length(headers: Sequence[str]) -> int:
    """The length that a request says it has. Raises Refused when it says none, several, or one that is not read."""
    if not headers:
        raise Refused(411, "the request has no Content-Length; say how many bytes it has.")
    header, *others = headers
    if others:
        raise Refused(400, f"the request has {len(headers)} headers Content-Length; send one.")
    if not re.fullmatch("[0-9]{1,18}", header.strip()):
        raise Refused(400, f'Content-Length is "{header[:40]}"; it must be a whole number of bytes.')
    length = int(header)
    if not 0 < length <= LARGEST_REQUEST_BYTES:
        status = 413 if length else 400
        raise Refused(status, f"the request has {length} bytes; 1 to {LARGEST_REQUEST_BYTES} are read.")
    return length


def complete(model: GPT, body: bytes) -> list[dict[str, object]]:
    """The completions a request asks for. Raises UserError, in one sentence, for a request that cannot be met."""
    try:
        table = parse_json(body.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"the request is not valid JSON ({error}).") from None
    if not isinstance(table, dict):
        raise UserError('the request must be a JSON object with a "prompt".')
    settings = asdict(to_dataclass(Request, table, Place("the request")))
    found = generate(model, settings.pop("prompt"), **settings)
    return [{"text": one.text, "finish_reason": one.finish_reason, "tokens": len(one.token_ids)} for one in found]
