"""What is refused before any route sees it: foreign names and pages, wrong tokens, bodies too large or too slow.

A page of another site can have a browser ask 127.0.0.1, by its number (then `Origin` tells) or by a name that the site
points there (DNS rebinding: then `Host` tells). Both are refused, so a server without a token is its machine's own.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import socket
from dataclasses import dataclass
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.serving.wire import Json, to_json

HOST = re.compile(r"^(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?$")
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
OPEN_PATHS = re.compile(r"^/(?:healthz|playground/[^/]*)?$")
"""What needs no token: whether the server lives, and the page itself, which asks for the token."""
FILE_PATH = "/api/patches"


@dataclass(frozen=True)
class Limits:
    """Who may ask, and how much of a request is read."""

    host: str = "127.0.0.1"
    """The address that is listened on."""
    token: str | None = None
    """What every request must bring (`Authorization: Bearer …`)."""
    names: tuple[str, ...] = ()
    """Further names that the server is reached by."""
    origins: tuple[str, ...] = ()
    """Other sites whose pages may ask (CORS): "https://example.org"."""
    body_bytes: int = 1 << 20
    file_bytes: int = 64 << 20
    """Of a patch that is sent to be loaded."""
    header_bytes: int = 32 << 10
    headers: int = 128
    patience_seconds: float = 20.0
    """For a whole request to arrive, from the connection or the last answer on."""
    connections: int = 512
    """At once; of more, the one that has waited longest is closed."""
    reader_seconds: float = 60.0
    """For a reader to take what has been written."""

    def __post_init__(self) -> None:
        if not is_here(self.host) and not self.token:
            raise UserError(
                f"{self.host} can be reached from other machines; give a --token that those who may ask know "
                "(openssl rand -hex 16 makes one), or leave --host out."
            )
        if self.token is not None and (not self.token.isascii() or not self.token.isprintable() or " " in self.token):
            raise UserError("can hold printable ASCII characters and no space.", field="--token")

    def knows(self, name: str) -> bool:
        """May the server be called by this name? On an address of this machine only, names of it; on another, any
        number (nobody can point a number elsewhere), the machine's own name, and those that are given."""
        if is_here(name) or name.lower() in {each.lower() for each in self.names}:
            return True
        if is_here(self.host):
            return False
        return is_number(name) or name.lower() in {socket.gethostname().lower(), self.host.lower()}


class Refused(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, sentence: str, *, code: str | None = None, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.code = status, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Guard:
    """The outermost layer of the application (ASGI)."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        origin = headers.get("origin")

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                for name, value in (SECURITY_HEADERS | self.cors(origin)).items():
                    added.setdefault(name, value)
            await send(message)

        try:
            self.check(scope, headers)
            if self.cors(origin) and scope["method"] == "OPTIONS":
                return await self.allow(guarded)
            most = self.limits.file_bytes if scope["path"] == FILE_PATH else self.limits.body_bytes
            body = await self.body(headers, receive, most)
        except Refused as refused:
            return await answer(guarded, refused.status, error_body(str(refused), code=refused.code), refused.headers)
        await self.app(scope, replay(body, receive), guarded)

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raise Refused for a request with too large a head, from elsewhere, or without the token."""
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(map(sum_of_lengths, headers.raw))
        if size > self.limits.header_bytes or len(headers.raw) > self.limits.headers:
            raise Refused(431, f"its headers are too large; {self.limits.header_bytes:,} bytes are read.")
        if scope["http_version"] not in ("1.0", "1.1"):
            raise Refused(400, "this is no HTTP/1.1.")
        hosts = headers.getlist("host")
        if len(hosts) > 1 or (not hosts and scope["http_version"] == "1.1"):
            raise Refused(400, f"the request has {len(hosts)} headers Host; send one.")
        host = hosts[0] if hosts else None
        if host is not None:
            found = HOST.match(host)
            if found is None or not self.limits.knows(found["name"]):
                raise Refused(403, f'the request is for "{host[:80]}", which is no name of this server (--names).')
        origin = headers.get("origin")
        own = f"{scope.get('scheme', 'http')}://{host}"
        if origin is not None and origin.lower() != own.lower() and origin not in self.limits.origins:
            raise Refused(403, f'the request comes from a page of "{origin[:80]}"; only the server\'s own may ask.')
        if origin is None and headers.get("sec-fetch-site") in ("cross-site", "same-site") and scope["path"] != "/":
            raise Refused(403, "the request comes from another site's page; only the server's own may ask.")
        preflight = scope["method"] == "OPTIONS" and origin in self.limits.origins
        if self.limits.token is not None and not OPEN_PATHS.match(scope["path"]) and not preflight:
            self.check_token(headers.get("authorization", ""))

    def check_token(self, authorization: str) -> None:
        """Raise Refused for a token that is not the one, in the same time for all of its length."""
        assert self.limits.token is not None
        kind, _, given = authorization.partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.limits.token.encode())
        if kind.lower() != "bearer" or not right:
            wrong = "the token is not right" if authorization else "a token is needed: Authorization: Bearer …"
            raise Refused(401, f"{wrong}.", code="invalid_api_key", WWW_Authenticate="Bearer")

    def cors(self, origin: str | None) -> dict[str, str]:
        """What tells a browser that a page of that site may read the answer."""
        if origin is None or origin not in self.limits.origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Vary": "Origin",
            "Cross-Origin-Resource-Policy": "cross-origin",
        }

    async def allow(self, send: Send) -> None:
        await answer(
            send,
            204,
            None,
            {
                "Access-Control-Allow-Methods": "GET, POST, PATCH, DELETE",
                "Access-Control-Allow-Headers": "authorization, content-type",
                "Access-Control-Max-Age": "600",
            },
        )

    async def body(self, headers: Headers, receive: Receive, most: int) -> bytes:
        """The whole body. Raises Refused where it is too large, or does not arrive in time."""
        found = bytearray()
        said = headers.get("content-length", "0")
        if said.isascii() and said.isdigit() and int(said[:20]) > most:
            raise Refused(413, f"the request has {int(said[:20]):,} bytes; {most:,} are read.", Connection="close")
        try:
            async with asyncio.timeout(self.limits.patience_seconds):
                while True:
                    message = await receive()
                    found += message.get("body", b"")
                    if len(found) > most:
                        raise Refused(413, f"the request has more than {most:,} bytes.", Connection="close")
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return bytes(found)
        except TimeoutError:
            seconds = self.limits.patience_seconds
            raise Refused(
                408, f"{len(found)} bytes came within {seconds:g} s; send faster.", Connection="close"
            ) from None


def sum_of_lengths(header: tuple[bytes, bytes]) -> int:
    name, value = header
    return len(name) + len(value)


def replay(body: bytes, receive: Receive) -> Receive:
    """A body that has been read, and then whatever comes after it."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


async def answer(send: Send, status: int, value: Json | None, headers: dict[str, str]) -> None:
    """A small answer without a route."""
    body = b"" if value is None else to_json(value)
    every = headers | {"Content-Type": "application/json", "Content-Length": str(len(body))}
    raw = [(name.lower().encode(), text.encode("latin-1", "replace")) for name, text in every.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def error_body(
    sentence: str, param: str | None = None, *, kind: str = "invalid_request_error", code: str | None = None
) -> Json:
    """An error in the shape of OpenAI's."""
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code}}


def is_number(name: str) -> bool:
    """Is this an address rather than a name?"""
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def is_here(host: str) -> bool:
    """Is this a name or an address that only this machine can be reached by?"""
    return host.lower() == "localhost" or (is_number(host) and ip_address(host.strip("[]")).is_loopback)
