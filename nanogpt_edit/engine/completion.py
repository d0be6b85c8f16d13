"""What the engine is asked for, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

COMPLETION_BYTES, TOKEN_BYTES = 512, 64  # what Python keeps of a completion, and of each of its tokens


@dataclass(frozen=True)
class Completion:
    """One sampled text: `Completion(0, 3, (12, 7, 418), (-0.1, -2.3, -0.0), "stop")` is sample 3 of prompt 0."""

    prompt_index: int
    sample_index: int
    token_ids: tuple[int, ...]
    """What was sampled, the stop token included."""
    logprobs: tuple[float, ...]
    """Nats, of each sampled token under the temperature-scaled full softmax."""
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """One sample that is still to be made."""

    prompt_index: int
    sample_index: int
    prompt_key: int


def completion_bytes(tokens: int) -> int:
    """The memory that a completion of so many tokens takes."""
    return COMPLETION_BYTES + TOKEN_BYTES * tokens
