"""`logs/rollouts/` -> what the policy wrote at the first, the middle and the last step of GRPO."""

from __future__ import annotations

from pathlib import Path

from nanogpt_edit.files import read_jsonl
from nanogpt_edit.report.fields import Fields
from nanogpt_edit.report.records import Rollout, RolloutStep, RolloutToken

GROUPS = 2  # problems shown of each step


def read_rollouts(folder: Path) -> tuple[RolloutStep, ...]:
    """First, middle and last step; none when the run kept no rollouts. Raises UserError naming a damaged file."""
    files = sorted(folder.glob("step_*.jsonl.gz"))
    chosen = sorted({0, len(files) // 2, len(files) - 1}) if files else []
    return tuple(_read_step(files[place]) for place in chosen)


def _read_step(path: Path) -> RolloutStep:
    lines = [Fields(record, f"{path}: record {number}") for number, record in enumerate(read_jsonl(path), start=1)]
    told = [_read_rollout(fields) for fields in lines if "logprobs" in fields.values]
    groups = list(dict.fromkeys(rollout.group for rollout in told))[:GROUPS]
    return RolloutStep(
        step=int(path.name.removeprefix("step_").partition(".")[0]),
        completions=len(lines),
        correct=sum(fields.inner("rewards").number("accuracy") == 1 for fields in lines),
        shown=tuple(
            sorted(
                (rollout for rollout in told if rollout.group in groups),
                key=lambda rollout: (groups.index(rollout.group), -rollout.advantage),
            )
        ),
    )


def _read_rollout(fields: Fields) -> Rollout:
    columns = [fields.items(name) for name in ("token_texts", "logprobs", "entropy", "clipped")]
    if len({len(column) for column in columns}) > 1:
        raise fields.error("logprobs", "one number per token")
    return Rollout(
        group=fields.integer("group"),
        question=fields.text("question"),
        gold=fields.text("gold"),
        text=fields.text("text"),
        correct=fields.inner("rewards").number("accuracy") == 1,
        advantage=fields.number("advantage"),
        tokens=tuple(
            RolloutToken(text=str(text), logprob=float(logprob), entropy=float(entropy), clipped=int(clipped))
            for text, logprob, entropy, clipped in zip(*columns, strict=True)
        ),
    )
