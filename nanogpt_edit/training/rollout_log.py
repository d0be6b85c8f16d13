"""Every completion of a step as a line of `logs/rollouts/step_000000.jsonl.gz`, some of them token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanogpt_edit.common import distributed
from nanogpt_edit.common.files import write_jsonl
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.training.rollouts import RolloutGroup
from nanogpt_edit.training.update import GroupDetail


def write_rollouts(
    folder: Path,
    step: int,
    groups: Sequence[RolloutGroup],
    details: Sequence[GroupDetail],
    tokenizer: Tokenizer,
    *,
    detailed: int,
) -> None:
    """Write the step's file, atomically, in the first process; the same rollout gives the same bytes.

    `details` are those of the groups that were trained on; `detailed` completions have their tokens: of every trained
    group in turn, the best and the worst.
    """
    if not distributed.is_first():
        return
    trained = {detail.number: detail for detail in details}
    chosen = best_and_worst([group for group in groups if group.number in trained], detailed)
    lines: list[dict[str, object]] = []
    for group in groups:
        detail, advantages = trained.get(group.number), group.advantages.tolist()
        for sample, completion in enumerate(group.completions):
            line: dict[str, object] = {
                "group": group.number,
                "problem_id": group.problem.id,
                "question": group.problem.question,
                "gold": group.problem.answer,
                "sample": sample,
                "text": tokenizer.decode(completion.token_ids),
                "rewards": {name: values[sample] for name, values in group.rewards.items()},
                "reward": group.total[sample].item(),
                "advantage": advantages[sample],
                "finish_reason": completion.finish_reason,
                "tokens": len(completion.token_ids),
                "in_loss": detail is not None and group.takes_part[sample],
            }
            if detail is not None and (group.number, sample) in chosen:
                line["token_texts"] = [tokenizer.token_text(token_id) for token_id in completion.token_ids]
                line["logprobs"] = [round(value, 5) for value in completion.logprobs]
                line["entropy"] = [round(value, 5) for value in detail.entropy[sample]]
                line["clipped"] = list(detail.clipped[sample])
            lines.append(line)
    write_jsonl(folder / f"step_{step:06}.jsonl.gz", lines)


def best_and_worst(groups: Sequence[RolloutGroup], count: int) -> set[tuple[int, int]]:
    """(group, sample) of `count` completions: of each group, in order, the best rewarded and the worst."""
    chosen = [
        (group.number, sample)
        for group in groups[: (count + 1) // 2]
        for sample in (int(group.total.argmax()), int(group.total.argmin()))
    ]
    return set(chosen[:count])
