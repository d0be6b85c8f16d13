"""`nanogpt-edit trace MODEL --prompt … --subject …`: where in the network a fact is recalled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nanogpt_edit import api
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.devices import choose_device
from nanogpt_edit.edit.tracing import Site, TraceConfig
from nanogpt_edit.model.checkpoint import load


@dataclass(frozen=True)
class Trace:
    """Causal tracing: corrupt the subject, restore one token's state at one layer, see how much of the answer returns.

    The table shows points of probability; the subject's tokens are marked with *.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A model directory, a hub name (gpt2), or a nanoGPT ckpt.pt."""
    prompt: str
    """Text that ends right before the answer."""
    subject: str
    """What the prompt is about; it occurs in the prompt."""
    target: str | None = None
    """The answer to follow (None: what the model itself says next)."""
    out: Path | None = None
    """SVG file for the heat map of one site (None: only print)."""
    site: Site = "resid_post"
    """Which site the SVG shows."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, …"""
    trace: TraceConfig = TraceConfig()


def trace(arguments: list[str]) -> int:
    """The verb `trace`."""
    chosen = parse(Trace, arguments, verb="trace")
    model = load(chosen.model, device=choose_device(chosen.device))
    found = api.trace(model, chosen.prompt, chosen.subject, target=chosen.target, config=chosen.trace)
    print(found)
    if chosen.out is not None:
        found.save(chosen.out, site=chosen.site)
        print(f"\nThe heat map: {chosen.out}")
    return 0
