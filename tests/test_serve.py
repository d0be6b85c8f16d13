"""A model behind HTTP on a free port of this machine: the page, what it is, completions, refusals in a sentence."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from nanogpt_edit.errors import UserError
from nanogpt_edit.generation import generate
from nanogpt_edit.model.gpt import GPT, GPTConfig
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.serve.server import complete, make_server


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
    assert ask(port, "POST", "/", b"{}")[0] == 404


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
        (b'{"prompt": "  "}', 'with a "prompt"'),
        (b'{"prompt": "a", "n": true}', "wrong type"),
        (b'{"prompt": "a", "n": 65}', "1 to 64"),
        (b'{"prompt": "a", "temperature": -1}', "negative"),
        (b'{"prompt": "a", "heat": 1}', 'unknown field "heat"'),
    ],
)
def test_a_bad_request_is_answered_with_a_sentence(port: int, body: bytes, sentence: str) -> None:
    status, reply = ask(port, "POST", "/v1/generate", body)
    assert status == 400
    assert sentence in json.loads(reply)["error"]


def test_a_prompt_that_is_too_long_is_refused_and_a_taken_port_too(model: GPT, port: int) -> None:
    with pytest.raises(UserError, match="block_size"):
        complete(model, json.dumps({"prompt": "Tom has 3 apples. " * 40}).encode())
    with pytest.raises(UserError, match="--port"):
        make_server(model, "again", port=port)
    with pytest.raises(UserError, match="port is 65536; a port is a number from 0"):
        make_server(model, "again", port=65_536)
