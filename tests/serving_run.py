"""A real server on a free port of this machine, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection

from needs_serving import uvicorn

from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.serving.limits import Limits
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.room import Room
from nanogpt_edit.serving.run import listening, settings

TEXTS = ["Tom has 3 apples and buys 4 more.", "The capital of France is Paris.", "Ärger: ein schöner Baum für 5 €."]


def small_model(*, seed: int = 0, block_size: int = 64) -> GPT:
    """A random model that writes any token: large weights, 300 tokens."""
    tokenizer = Tokenizer.train(TEXTS * 3, vocab_size=300)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=block_size, n_layer=2, n_head=2, n_embd=16)
    model = GPT(config, seed=seed)
    model.tokenizer = tokenizer
    return model.eval()


@dataclass(frozen=True)
class Served:
    """Where it listens, what it offers, and how it is asked."""

    port: int
    shelf: Shelf
    server: uvicorn.Server

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body); a body that is not bytes is sent as JSON."""
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {} if raw is None else {"Content-Type": "application/json"}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, raw, kind | (headers or {}))
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def post(self, path: str, body: object) -> dict[str, object]:
        """The JSON that a request of status 200 brings."""
        status, _, found = self.ask("POST", path, body)
        assert status == 200, found
        parsed = json.loads(found)
        assert isinstance(parsed, dict)
        return parsed


@contextmanager
def served(shelf: Shelf, *, limits: Limits | None = None, room: Room | None = None) -> Iterator[Served]:
    """A server that has ended when this is left."""
    limits = limits or Limits()
    with listening(limits.host, 0) as bound:
        server = uvicorn.Server(settings(shelf, limits, room or Room()))
        thread = threading.Thread(target=lambda: asyncio.run(server._serve([bound])))
        thread.start()
        try:
            yield Served(bound.getsockname()[1], shelf, server)
        finally:
            server.should_exit = True
            thread.join(timeout=60)
            assert not thread.is_alive()
