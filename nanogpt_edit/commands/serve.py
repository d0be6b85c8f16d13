"""`nanogpt-edit serve MODEL`: the playground page and the HTTP API."""

from __future__ import annotations

from nanogpt_edit.commands.arguments import Serve
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.speaker import load_speaker
from nanogpt_edit.common.terminal import say
from nanogpt_edit.serving.server import make_server


def serve(arguments: list[str]) -> int:
    """The verb `serve`."""
    chosen = parse(Serve, arguments, verb="serve")
    model, _ = load_speaker(chosen.model, chosen.device)
    with make_server(model, chosen.model, host=chosen.host, port=chosen.port) as server:
        say(f"The playground: http://{chosen.host}:{server.server_port}/ (Ctrl-C ends it)")
        server.serve_forever()
    return 0
