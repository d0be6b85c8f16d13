"""The settings of sampling."""

from __future__ import annotations

from dataclasses import dataclass

from nanogpt_edit.common.errors import UserError, at_least
from nanogpt_edit.common.records import Settings, check_fields

LOWEST_TEMPERATURE = 1e-6  # logits divided by it are still far from float32's limits


@dataclass(frozen=True)
class Sampling(Settings):
    """How tokens are drawn."""

    temperature: float = 0.7
    """Divides the logits before the softmax; 0 takes the most probable token (greedy)."""
    top_k: int | None = 50
    """Only the k most probable tokens can be drawn (None: all)."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability can be drawn (1: all)."""
    max_new_tokens: int = 256
    """A completion is cut after this many tokens."""
    seed: int = 0
    """Chooses the uniform numbers."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_temperature(self.temperature)
        at_least(0, self, "seed")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"{self.top_k} leaves no token; use at least 1, or none to allow all.", field="top_k")
        if not 0 < self.top_p <= 1:
            raise UserError(f"{self.top_p} is not in (0, 1].", field="top_p")
        if self.max_new_tokens < 1:
            raise UserError(
                f"{self.max_new_tokens} leaves nothing to generate; use at least 1.", field="max_new_tokens"
            )


@dataclass(frozen=True)
class RestrictedSampling(Sampling):
    """Sampling from a part of the vocabulary: what a caller of the engine asks for, and no setting of a person's."""

    banned_ids: tuple[int, ...] = ()
    """Tokens that are never drawn; all probabilities are those among the others."""


def check_temperature(temperature: float) -> None:
    """Raise UserError for a temperature that is negative, or so small that logits divided by it are infinite."""
    if temperature < 0:
        raise UserError(f"{temperature} is negative; use 0 for greedy decoding.", field="temperature")
    if 0 < temperature < LOWEST_TEMPERATURE:
        raise UserError(
            f"{temperature} is too low to divide by; use at least {LOWEST_TEMPERATURE}, or 0 for greedy decoding.",
            field="temperature",
        )
