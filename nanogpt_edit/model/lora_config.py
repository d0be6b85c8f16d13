"""The settings of LoRA. See `lora.py` for what they steer."""

from __future__ import annotations

from dataclasses import dataclass

from nanogpt_edit.common.errors import UserError, at_least, did_you_mean
from nanogpt_edit.common.records import Settings, check_fields

EVERY = "all-linear"
LAYERS = ("attn.qkv", "attn.out", "mlp.gate", "mlp.up", "mlp.down")
"""Of a block; mlp.gate in the Llama family only."""


@dataclass(frozen=True)
class LoraConfig(Settings):
    """What is learned beside the weights instead of in them. `LoraConfig(rank=16)`"""

    rank: int = 0
    """Rank of each matrix's change: 16 or so (0: no LoRA, all weights learn)."""
    alpha: float | None = None
    """A change counts alpha / rank times (None: twice the rank)."""
    targets: str = EVERY
    """Which layers of the blocks: all-linear, or some of attn.qkv, attn.out, mlp.gate, mlp.up and mlp.down, with commas
    between."""
    keep_adapter: bool = False
    """Write the adapter too, in PEFT's format, in a folder beside the model into which it is merged."""

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(0, self, "rank")
        if self.alpha is not None and not self.alpha > 0:
            raise UserError(f"is {self.alpha}; it must be above 0.", field="alpha")
        if not self.rank and (self.alpha is not None or self.targets != EVERY or self.keep_adapter):
            raise UserError("is 0, so that the other settings of LoRA have no effect; give it, 16 say.", field="rank")
        for name in self.layers:
            if name not in LAYERS:
                raise UserError(f"names {name!r}, which is no layer of a block{did_you_mean(name, LAYERS)}"
                                f" There are {', '.join(LAYERS)}; {EVERY} takes all.", field="targets")  # fmt: skip

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of a block that learn."""
        return LAYERS if self.targets == EVERY else tuple(name.strip() for name in self.targets.split(","))

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return 2.0 if self.alpha is None else self.alpha / self.rank
