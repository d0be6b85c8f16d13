"""The settings of causal tracing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nanogpt_edit.common.errors import UserError, at_least
from nanogpt_edit.common.records import Settings, check_fields

Site = Literal["resid_post", "mlp_out", "attn_out"]
SITES: tuple[Site, ...] = ("resid_post", "mlp_out", "attn_out")


@dataclass(frozen=True)
class TraceConfig(Settings):
    """How facts are traced."""

    facts: int = 40
    """Facts averaged over (those the model recalls, first come first)."""
    draws: int = 8
    """Draws of the noise per fact."""
    noise: float = 3.0
    """Standard deviation of the noise, in standard deviations of the embeddings."""
    sites: tuple[Site, ...] = SITES
    """What is restored: resid_post, mlp_out, attn_out."""
    window: int | None = None
    """Layers whose mlp_out or attn_out is restored together (None: a fifth of the layers, at least one)."""
    seed: int = 0
    """Chooses the noise."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.sites:
            raise UserError(f"is empty; name at least one of {', '.join(SITES)}.", field="sites")
        at_least(1, self, "facts", "draws", "window")
        at_least(0, self, "noise", "seed")

    def layers_around(self, layer: int, n_layer: int) -> range:
        """The window of layers centred on `layer`, cut at the model's ends."""
        width = self.window if self.window is not None else max(1, n_layer // 5)
        return range(max(0, layer - width // 2), min(n_layer, layer + (width + 1) // 2))
