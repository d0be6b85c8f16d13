"""`logs/rollouts/` -> what the policy wrote at the first, the middle and the last step of GRPO."""

from __future__ import annotations

from pathlib import Path

from nanogpt_edit.report.fields import Fields, read_lines
from nanogpt_edit.report.records import Rollout, RolloutStep, RolloutToken

GROUPS = 2  # problems shown of each step


def read_rollouts(folder: Path) -> tuple[RolloutStep, ...]:
    """First, middle and last step; none when the run kept no rollouts. Raises UserError naming a damaged file."""
    files = sorted(folder.glob("step_*.jsonl.gz"))
    chosen = sorted({0, len(files) // 2, len(files) - 1}) if files else []
    return tuple(_read_step(files[place]) for place in chosen)


def _read_step(path: Path) -> RolloutStep:
    lines = read_lines(path)
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
    texts = fields.items("token_texts")
    columns = [fields.numbers(name) for name in ("logprobs", "entropy", "clipped")]
    if any(len(column) != len(texts) for column in columns):
        raise fields.error("logprobs", "one number per token")
    return Rollout(
        group=fields.integer("group"),
        question=fields.text("question"),
        gold=fields.text("gold"),
        text=fields.text("text"),
        correct=fields.inner("rewards").number("accuracy") == 1,
        advantage=fields.number("advantage"),
        tokens=tuple(
            RolloutToken(text=str(text), logprob=logprob, entropy=entropy, clipped=int(clipped))
            for text, logprob, entropy, clipped in zip(texts, *columns, strict=True)
        ),
    )
