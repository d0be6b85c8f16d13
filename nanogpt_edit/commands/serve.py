"""`nanogpt-edit serve MODEL`: the playground page and the HTTP API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.speaker import load_speaker
from nanogpt_edit.progress import say
from nanogpt_edit.serve.server import make_server


@dataclass(frozen=True)
class Serve:
    """Serve a model: a playground in the browser, and POST /v1/generate for programs. Ctrl-C ends it."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A model directory, a hub name (gpt2), or a nanoGPT ckpt.pt."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine only."""
    port: int = 8000
    """Port to listen on."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, …"""


def serve(arguments: list[str]) -> int:
    """The verb `serve`."""
    chosen = parse(Serve, arguments, verb="serve")
    model, _ = load_speaker(chosen.model, chosen.device)
    with make_server(model, chosen.model, host=chosen.host, port=chosen.port) as server:
        say(f"The playground: http://{chosen.host}:{server.server_port}/ (Ctrl-C ends it)")
        server.serve_forever()
    return 0
