"""`nanogpt-edit serve MODEL …`: the playground page and the HTTP API."""

from __future__ import annotations

from nanogpt_edit.commands.arguments import Serve
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.terminal import say

PARTS = ("fastapi", "uvicorn", "prometheus_client", "pydantic", "starlette", "h11")


def serve(arguments: list[str]) -> int:
    """The verb `serve`."""
    chosen = parse(Serve, arguments, verb="serve")
    try:
        from nanogpt_edit.serving import run  # here, for what it needs may not be installed
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in PARTS:
            raise
        raise UserError(
            f"serve needs {error.name}, which is not installed; install the extra: pip install 'nanogpt-edit[serve]'."
        ) from None
    run.serve_models(
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
