"""Every completion of a step as a line of `logs/rollouts/step_000000.jsonl.gz`, some of them token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nanogpt_edit.common import distributed
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.training.records import Rollout, save_rollouts
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
    rollouts: list[Rollout] = []
    for group in groups:
        detail, advantages = trained.get(group.number), group.advantages.tolist()
        for sample, completion in enumerate(group.completions):
            rollout = Rollout(
                group=group.number,
                problem_id=group.problem.id,
                question=group.problem.question,
                gold=group.problem.answer,
                sample=sample,
                text=tokenizer.decode(completion.token_ids),
                rewards={name: values[sample] for name, values in group.rewards.items()},
                reward=group.total[sample].item(),
                advantage=advantages[sample],
                finish_reason=completion.finish_reason,
                tokens=len(completion.token_ids),
                in_loss=detail is not None and group.takes_part[sample],
            )
            if detail is not None and (group.number, sample) in chosen:
                rollout = replace(
                    rollout,
                    token_texts=tuple(map(tokenizer.token_text, completion.token_ids)),
                    logprobs=tuple(round(value, 5) for value in completion.logprobs),
                    entropy=tuple(round(value, 5) for value in detail.entropy[sample]),
                    clipped=tuple(detail.clipped[sample]),
                )
            rollouts.append(rollout)
    save_rollouts(folder, step, rollouts)


def best_and_worst(groups: Sequence[RolloutGroup], count: int) -> set[tuple[int, int]]:
    """(group, sample) of `count` completions: of each group, in order, the best rewarded and the worst."""
    chosen = [
        (group.number, sample)
        for group in groups[: (count + 1) // 2]
        for sample in (int(group.total.argmax()), int(group.total.argmin()))
    ]
    return set(chosen[:count])
