"""What every training stage is told, and the learning rate of a step that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nanogpt_edit.common.errors import UserError, at_least
from nanogpt_edit.common.records import Settings, check_fields
from nanogpt_edit.model.lora_config import LoraConfig

Keep = Literal["best", "last", "both"]
NEVER_WARM = 1000  # so many times the steps there are, a warm-up is a mistake
LORA_TIMES = 10  # LoRA wants about so many times the learning rate of full training (Schulman et al. 2025)


class Default(float):
    """A number that nobody has given: `Default(1e-3)`."""


@dataclass(frozen=True)
class LoopConfig(Settings):
    """Fields every training stage has."""

    steps: int = 1000
    """Optimizer steps; 0 leaves the stage out."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw for every weight, or muon for the matrices of the blocks and adamw for the rest."""
    learning_rate: float = Default(1e-3)
    """AdamW's peak step size. (With LoRA, and where none is given: ten times the default.)"""
    muon_learning_rate: float = 0.02
    """Muon's peak step size."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    decay_share: float = 1.0
    """The learning rate falls over this last share of the steps after the warm-up, and is flat before."""
    final_learning_rate: float = 0.1
    """The last learning rate, as a share of the peak."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay, on matrices only."""
    beta2: float = 0.95
    """AdamW's decay of the squared gradient."""
    grad_clip: float = 1.0
    """The gradient's norm is cut to this."""
    micro_batch_tokens: int | None = None
    """Tokens that go through the model at once; memory only, the gradient is the same (None: as many as keep 2 GiB for
    the backward pass, or an eighth of the machine's memory where that is less; on a GPU a quarter of its memory; at
    most 16,384)."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them: a fraction of their memory,
    a third more arithmetic, the same gradient."""
    compile: bool = False
    """Run the blocks through torch.compile, in training and (not with shards) in the sampling of GRPO: a minute or more
    at the start, for long runs on a GPU. On a CPU it is slower than without."""
    evaluate_every: int = 100
    """Steps between two looks at the validation set."""
    save_every: int = 50
    """Steps between two saved states, from which a killed run goes on."""
    save_minutes: float = 10.0
    """Minutes after which a state is saved in any case."""

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(0, self, "steps", "warmup_steps", "learning_rate", "muon_learning_rate", "weight_decay")
        at_least(1, self, "micro_batch_tokens")
        for name in ("evaluate_every", "save_every", "save_minutes", "grad_clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"is {getattr(self, name)}; it must be above 0.", field=name)
        if self.warmup_steps > NEVER_WARM * max(1, self.steps):
            raise UserError(
                f"is {self.warmup_steps}, and there are {self.steps} steps: the learning rate would stay at nothing; "
                "use fewer.",
                field="warmup_steps",
            )
        for name in ("decay_share", "final_learning_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"is {getattr(self, name)}; it is a share, in [0, 1].", field=name)
        if not 0 <= self.beta2 < 1:
            raise UserError(f"is {self.beta2}; it must be in [0, 1).", field="beta2")


@dataclass(frozen=True)
class TuningConfig(LoopConfig):
    """Fields of the stages that may leave a model's own weights alone."""

    lora: LoraConfig = LoraConfig()
    """Learn low-rank changes of the blocks' matrices in the place of all weights (LoRA)."""
    frozen: tuple[str, ...] | None = None
    """Weights that stay as they are, by the names of parts: blocks.0 (all of a block), blocks.0.mlp.down (what an edit
    has written into), embed (None: all learn)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frozen is not None:
            if not self.frozen:
                raise UserError("names nothing; name parts of the model, or leave it out.", field="frozen")
            object.__setattr__(self, "frozen", tuple(sorted(set(self.frozen))))
        if not self.lora.rank:
            return
        if self.frozen:
            raise UserError(
                "names weights that stay as they are; with LoRA all do. Leave it out (lora.targets).", field="frozen"
            )
        if self.optimizer == "muon":
            raise UserError("is muon, but LoRA's matrices learn by adamw; leave one of them out.", field="optimizer")
        if isinstance(self.learning_rate, Default):
            object.__setattr__(self, "learning_rate", float(LORA_TIMES * self.learning_rate))


def schedule_at(step: int, config: LoopConfig) -> float:
    """The share of the peak learning rate at step 0, 1, …: linear warm-up, flat, then cosine or linear decay."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    last = config.steps - 1
    begin = last - config.decay_share * (last - config.warmup_steps)
    done = max(0.0, step - begin) / max(1.0, last - begin)
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.final_learning_rate + (1 - config.final_learning_rate) * left
