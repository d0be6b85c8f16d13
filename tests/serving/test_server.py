"""A model behind HTTP on a free port of this machine: the page, what it is, completions, refusals in a sentence."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPConnection

import pytest

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.engine.generate import generate
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.serving.server import complete, make_server


@pytest.fixture(scope="module")
def model() -> GPT:
    tokenizer = Tokenizer.train(["Tom has 3 apples and buys 4 more."] * 3, vocab_size=270)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=16), seed=0)
    model.tokenizer = tokenizer
    return model.eval()


@pytest.fixture(scope="module")
def port(model: GPT) -> Iterator[int]:
    with make_server(model, "a tiny model", port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def test_the_page_and_the_model_are_shown(port: int, model: GPT) -> None:
    status, page = ask(port, "GET", "/")
    assert status == 200 and b"Playground" in page
    status, about = ask(port, "GET", "/v1/model")
    assert status == 200
    assert json.loads(about)["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert ask(port, "GET", "/etc")[0] == 404
    assert ask(port, "POST", "/etc", b"{}")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/generate", "POST"), ("POST", "/", "GET"), ("POST", "/v1/model", "GET"), ("PUT", "/", "GET, POST")],
)
def test_a_path_says_which_method_it_takes(port: int, method: str, path: str, allowed: str) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body=b"{}" if method == "POST" else None)
    reply = connection.getresponse()
    assert (reply.status, reply.headers["Allow"]) == (405, allowed)
    error = json.loads(reply.read())["error"]
    assert all(each in error for each in allowed.split(", "))
    connection.close()


def test_the_text_is_that_of_generate(port: int, model: GPT) -> None:
    request = {"prompt": "Tom has 3", "n": 3, "temperature": 1.0, "top_k": None, "max_new_tokens": 6, "seed": 5}
    status, reply = ask(port, "POST", "/v1/generate", json.dumps(request).encode())
    assert status == 200
    expected = generate(model, "Tom has 3", n=3, temperature=1.0, top_k=None, max_new_tokens=6, seed=5)
    assert [one["text"] for one in json.loads(reply)["completions"]] == [one.text for one in expected]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "not valid JSON"),
        (b"[]", 'with a "prompt"'),
        (b"{}", 'the field "prompt" is missing'),
        (b'{"prompt": "  "}', "the prompt is empty"),
        (b'{"prompt": 7}', '"prompt" must be text in quotes, found 7'),
        (b'{"prompt": ["a"]}', '"prompt" must be text in quotes'),
        (b'{"prompt": "a", "n": true}', '"n" must be a whole number, found true'),
        (b'{"prompt": "a", "n": 2.5}', '"n" must be a whole number, found 2.5'),
        (b'{"prompt": "a", "n": 0}', "1 to 64"),
        (b'{"prompt": "a", "n": 65}', "1 to 64"),
        (b'{"prompt": "a", "temperature": -1}', "negative"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN is no number"),
        (b'{"prompt": "a", "temperature": Infinity}', "Infinity is no number"),
        (b'{"prompt": "a", "temperature": 1e999}', "1e999 is beyond what a number can be"),
        (b'{"prompt": "a", "temperature": 1e-320}', "too low to divide by"),
        (b'{"prompt": "a", "temperature": "hot"}', '"temperature" must be a number, found "hot"'),
        (b'{"prompt": "a", "seed": 1e30}', '"seed" must be a whole number, found 1e+30'),
        (b'{"prompt": "a", "seed": 1000000000000000000000000000000}', "seed is a number of 100 bits"),
        (b'{"prompt": "a", "seed": ' + b"7" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"prompt": "\\ud800"}', "half of a surrogate pair"),
        (b'{"prompt": "a\xff"}', "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "a", "top_k": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "a", "max_new_tokens": 0}', "leaves nothing to generate"),
        (b'{"prompt": "' + b"apples " * 400 + b'"}', "block_size"),
        (b'{"prompt": "a", "heat": 1}', 'unknown field "heat"'),
        (b'{"prompt": "a", "seed": -1}', "seed is -1; it cannot be negative"),
        (b'{"prompt": "a", "temperature": 1e-400}', "1e-400 is nearer to zero than a number can be"),
        (b'{"prompt": "a", "n": 1, "n": 2}', '"n" is there twice'),
        (b'\xff\xfe{"prompt": "a"}', "not valid JSON"),
    ],
)
def test_a_bad_request_is_answered_with_a_sentence(port: int, body: bytes, sentence: str) -> None:
    status, reply = ask(port, "POST", "/v1/generate", body)
    assert status == 400
    assert sentence in json.loads(reply)["error"]


def test_a_byte_order_mark_is_no_part_of_a_request(port: int) -> None:
    request = b'{"prompt": "Tom has 3", "max_new_tokens": 4}'
    plain = ask(port, "POST", "/v1/generate", request)
    assert plain[0] == 200
    assert ask(port, "POST", "/v1/generate", b"\xef\xbb\xbf" + request) == plain


def test_the_only_prompt_has_no_number(port: int) -> None:
    _, reply = ask(port, "POST", "/v1/generate", b'{"prompt": "' + b"apples " * 400 + b'"}')
    assert json.loads(reply)["error"].startswith("the prompt has ")


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def send(port: int, request: bytes, *, leave: bool = False) -> tuple[int, str]:
    """What the server answers to these bytes: the status and the error. `leave` goes without waiting for it."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        if leave:
            return 0, ""
        connection.shutdown(socket.SHUT_WR)
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    return int(head.split()[1]), json.loads(body)["error"]


POST, BODY = b"POST /v1/generate HTTP/1.1\r\nHost: 127.0.0.1\r\n", b'\r\n\r\n{"prompt": "a"}'


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        (POST + b"Content-Length: abc" + BODY, 400, 'Content-Length is "abc"; it must be a whole number of bytes'),
        (POST + b"Content-Length: -5" + BODY, 400, 'Content-Length is "-5"'),
        (POST + b"Content-Length: 1_5" + BODY, 400, 'Content-Length is "1_5"'),
        (POST + b"Content-Length: " + b"9" * 5000 + BODY, 400, 'Content-Length is "999'),
        (POST + b"Content-Length: 0" + BODY, 400, "the request has 0 bytes; 1 to 1048576 are read"),
        (POST + b"Content-Length: 1048577" + BODY, 413, "the request has 1048577 bytes"),
        (POST + b"Content-Length: 15\r\nContent-Length: 15" + BODY, 400, "the request has 2 headers Content-Length"),
        (POST + b"Content-Length: 15, 15" + BODY, 400, 'Content-Length is "15, 15"'),
        (POST + BODY, 411, "no Content-Length"),
        (POST + b"Transfer-Encoding: chunked" + BODY, 411, "no Content-Length"),
        (POST + b"Content-Length: 100" + BODY, 400, "the request ended after 15 of 100 bytes; send all of them"),
        (POST.replace(b"127.0.0.1", b"evil.example:80") + b"Content-Length: 15" + BODY, 403, "for this machine only"),
        (POST.replace(b"127.0.0.1", b"127.0.0.1.evil.example") + BODY, 403, "for this machine only"),
        (POST.replace(b"127.0.0.1", b"[::") + BODY, 403, "for this machine only"),
        (POST + b"Origin: http://evil.example\r\nContent-Length: 15" + BODY, 403, "only the server's own page may ask"),
        (POST + b"Origin: null\r\nContent-Length: 15" + BODY, 403, "only the server's own page may ask"),
        (b"GET /v1/model HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, "for this machine only"),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404, "there is nothing at /../etc/passwd"),
        (b"PUT / HTTP/1.1\r\n\r\n", 405, "use GET or POST"),
        (b"GET / HTTP/9.9\r\n\r\n", 505, "use GET or POST"),
        (b"one two three four\r\n\r\n", 400, "use GET or POST"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414, "use GET or POST"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, "use GET or POST"),
    ],
)
def test_a_request_that_is_no_good_http_is_answered_too(
    port: int, request_: bytes, status: int, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found, error = send(port, request_)
    assert (found, sentence in error) == (status, True), error
    assert capfd.readouterr().err == ""


def test_a_page_of_this_server_may_ask_by_any_name_of_this_machine(port: int) -> None:
    for name in ("127.0.0.1", "localhost", f"localhost:{port}", "[::1]:9"):
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(
            "POST", "/v1/generate", b'{"prompt": "a", "max_new_tokens": 1}', {"Host": name, "Origin": f"http://{name}"}
        )
        assert connection.getresponse().status == 200
        connection.close()


def test_the_others_are_served_beside_clients_that_wait_leave_or_send_slowly(
    model: GPT, capfd: pytest.CaptureFixture[str]
) -> None:
    with make_server(model, "a tiny model", port=0, patience_seconds=0.5) as server, ExitStack() as stack:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        port = server.server_port
        begun = [b"", b"PO", POST, POST + b"Content-Length: 15\r\n\r\n", POST + b"Content-Length: 15" + BODY[:-9]]
        waiting = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            for _ in range(3 * len(begun))
        ]
        for number, connection in enumerate(waiting):
            connection.sendall(begun[number % len(begun)])
        for part in (*begun[1:], POST + b"Content-Length: 15" + BODY):
            send(port, part, leave=True)
        assert ask(port, "GET", "/v1/model")[0] == 200
        assert ask(port, "POST", "/v1/generate", b'{"prompt": "a", "max_new_tokens": 2}')[0] == 200
        answers = [everything(connection).partition(b"\r\n\r\n")[2] for connection in waiting]
        assert answers[:3] == [b""] * 3  # idle, or silent before the request was whole: closed
        assert b"0 of 15 bytes came within 0.5 s" in answers[3]
        assert b"6 of 15 bytes came within 0.5 s" in answers[4]
        slow = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        slow.sendall(POST + b"Content-Length: 15\r\n\r\n")
        with suppress(ConnectionError):
            for byte in b'{"prompt": "a"}':
                slow.sendall(bytes([byte]))
                time.sleep(0.1)
        assert b"408" in slow.recv(65536)
        server.shutdown()
        thread.join()
    assert capfd.readouterr().err == ""


def test_an_unforeseen_failure_is_said_and_the_next_request_served(
    model: GPT, port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    request = b'{"prompt": "a", "max_new_tokens": 1}'
    with monkeypatch.context() as broken:
        broken.setattr(type(model), "logits", None)
        status, reply = ask(port, "POST", "/v1/generate", request)
    assert status == 500
    assert "the server failed" in json.loads(reply)["error"]
    assert ask(port, "POST", "/v1/generate", request)[0] == 200
    assert "Traceback" in capfd.readouterr().err


def test_a_prompt_that_is_too_long_is_refused_and_a_taken_port_too(model: GPT, port: int) -> None:
    with pytest.raises(UserError, match="block_size"):
        complete(model, json.dumps({"prompt": "Tom has 3 apples. " * 40}).encode())
    with pytest.raises(UserError, match="--port"):
        make_server(model, "again", port=port)
    with pytest.raises(UserError, match="port is 65536; a port is a number from 0"):
        make_server(model, "again", port=65_536)
