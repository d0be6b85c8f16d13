"""`nanogpt-edit watch RUN`: the playground's view of a run, while another process makes it."""

from __future__ import annotations

import webbrowser

from nanogpt_edit.commands.arguments import Watch
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.serve import server_parts
from nanogpt_edit.common.terminal import say


def watch(arguments: list[str]) -> int:
    """The verb `watch`."""
    chosen = parse(Watch, arguments, verb="watch")
    parts = server_parts("watch")

    def started(address: str) -> None:
        say(f"The run: {address}#run (Ctrl-C ends it)")
        if chosen.open:
            webbrowser.open(f"{address}#run")

    parts.watch_run(chosen.run, port=chosen.port, device=chosen.device, started=started)
    return 0
