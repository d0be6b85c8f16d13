"""What each part of a run cost: its time, the tokens that went through the model, and the most memory it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nanogpt_edit.report.run import Run, Series

LOG_OF = {"base": "pretrain", "sft": "sft", "grpo": "grpo"}


@dataclass(frozen=True, slots=True)
class Cost:
    """A part of the run. `tokens` are those trained on, of GRPO those written; None where nobody counted."""

    name: str
    seconds: float
    tokens: int | None
    peak_bytes: int | None


def costs(run: Run) -> tuple[Cost, ...]:
    """The parts that were timed, in their order."""
    return tuple(
        Cost(name, seconds, _tokens(run.logs.get(LOG_OF.get(name, ""), {})), run.peak_bytes.get(name))
        for name, seconds in run.seconds.items()
    )


def _tokens(log: Mapping[str, Series]) -> int | None:
    """The sum over the steps of what a step's rate and seconds say."""
    rate, seconds = log.get("tokens_per_second"), log.get("seconds")
    if rate is None or seconds is None or rate.steps != seconds.steps:
        return None
    return round(sum(each * took for each, took in zip(rate.values, seconds.values, strict=True)))
