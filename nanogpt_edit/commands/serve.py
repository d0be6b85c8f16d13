"""`nanogpt-edit serve MODEL …`: the playground page and the HTTP API."""

from __future__ import annotations

import importlib
from types import ModuleType

from nanogpt_edit.commands.arguments import Serve
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.terminal import say

PARTS = ("fastapi", "uvicorn", "prometheus_client", "pydantic", "starlette", "h11")


def serve(arguments: list[str]) -> int:
    """The verb `serve`."""
    chosen = parse(Serve, arguments, verb="serve")
    server_parts("serve").serve_models(
        chosen.models,
        host=chosen.host,
        port=chosen.port,
        token=chosen.token,
        names=chosen.names,
        origins=chosen.origins,
        device=chosen.device,
        started=lambda address: say(f"The playground: {address} (Ctrl-C ends it)"),
    )
    return 0


def server_parts(verb: str) -> ModuleType:
    """The module that serves. Raises UserError where what it needs is not installed."""
    try:
        return importlib.import_module("nanogpt_edit.serving.run")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in PARTS:
            raise
        raise UserError(
            f"{verb} needs {error.name}, which is not installed; install the extra: pip install 'nanogpt-edit[serve]'."
        ) from None
