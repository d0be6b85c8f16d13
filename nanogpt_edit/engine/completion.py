"""What the engine is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from nanogpt_edit.engine.sampling_config import Sampling

COMPLETION_BYTES, TOKEN_BYTES = 512, 64  # what Python keeps of a completion, and of each of its tokens

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Completion:
    """One sampled text: `Completion(0, 3, (12, 7, 418), (-0.1, -2.3, -0.0), "stop")` is sample 3 of prompt 0."""

    prompt_index: int
    sample_index: int
    token_ids: tuple[int, ...]
    """What was sampled, the stop token included."""
    logprobs: tuple[float, ...]
    """Nats, of each sampled token under the temperature-scaled full softmax."""
    finish_reason: FinishReason


@dataclass(frozen=True)
class Manner:
    """How the tokens of a row are drawn; rows of the same manner are drawn together."""

    sampling: Sampling
    """Its seed and its length are nobody's: they are a row's own."""
    stop_ids: frozenset[int]
    alternatives: int | None


@dataclass(frozen=True, eq=False)
class Request:
    """One sample that is still to be made. Samples with the same `prompt_index` continue one prompt."""

    prompt_index: int
    sample_index: int
    prompt_key: int
    prompt: Sequence[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    alternatives: int | None = None
    """How many of the likeliest tokens are told beside each drawn one (None: nothing is told of it)."""

    @property
    def manner(self) -> Manner:
        return Manner(_unseeded(self.sampling), self.stop_ids, self.alternatives)


@dataclass(frozen=True)
class Look:
    """What the model thought of a token: `Look(-0.1, (418, 12), (-0.1, -2.5))`. Nats of the plain softmax, that of
    temperature 1 over the whole vocabulary."""

    logprob: float
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]
    """Of the likeliest tokens, most probable first."""


@dataclass(frozen=True)
class Fresh:
    """A token that a running row has just written; `finish_reason` where it was its last."""

    request: Request
    token_id: int
    look: Look | None
    finish_reason: FinishReason | None


@lru_cache(maxsize=256)
def _unseeded(sampling: Sampling) -> Sampling:
    return replace(sampling, seed=0, max_new_tokens=1)


def completion_bytes(tokens: int) -> int:
    """The memory that a completion of so many tokens takes."""
    return COMPLETION_BYTES + TOKEN_BYTES * tokens
