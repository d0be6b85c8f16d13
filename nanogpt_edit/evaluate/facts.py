"""What a model knows: is the target of a fact the greedy continuation of its prompt, and how probable is it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from nanogpt_edit.common.stats import Interval, bootstrap_mean
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.typed import read_jsonl_as


@dataclass(frozen=True)
class Question:
    """A prompt whose continuation is known."""

    group: str
    subject: str
    prompt: str
    target: str


@dataclass(frozen=True)
class Recall:
    """Does the model continue `prompt` with `target`? One line of `eval/<stage>_facts.jsonl`."""

    group: str  # which set of facts: recall, recall_edited, edited
    subject: str
    prompt: str
    target: str
    greedy: str  # the model's continuation, as many tokens as the target has
    rank: int  # of the target's first token; 1 is the most probable
    p_first: float
    p_target: float  # of the whole target
    recalled: bool  # greedy decoding writes the target


def read_recalls(path: Path) -> list[Recall]:
    """Read `eval/<stage>_facts.jsonl`. Raises UserError naming file, line and field of what is not a recall."""
    return read_jsonl_as(Recall, path)


@torch.inference_mode()
def recall(model: GPT, questions: Sequence[Question], *, rows: int = 256) -> list[Recall]:
    """Read each question's prompt and target in one pass: rank, probability, and what greedy decoding would write.

    The greedy text is the most probable token at each place given the target so far; it equals the target exactly
    when greedy decoding writes the target.
    """
    tokenizer = tokenizer_of(model)
    model.eval()
    recalls: list[Recall] = []
    for start in range(0, len(questions), rows):
        part = questions[start : start + rows]
        prompts = [tokenizer.encode(question.prompt) for question in part]
        targets = [tokenizer.encode(f" {question.target}") for question in part]
        lengths = [len(p) + len(t) for p, t in zip(prompts, targets, strict=True)]
        token_ids = torch.zeros(len(part), max(lengths), dtype=torch.long)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            token_ids[row, : lengths[row]] = torch.tensor([*prompt, *target])
        states = model.hidden(token_ids.to(model.device))
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            at = slice(len(prompt) - 1, len(prompt) - 1 + len(target))
            logprobs = model.logits(states[row, at]).float().log_softmax(dim=-1).cpu()  # (target tokens, V)
            own = logprobs.gather(1, torch.tensor(target)[:, None]).squeeze(1)
            greedy = logprobs.argmax(dim=-1).tolist()
            recalls.append(
                Recall(
                    **asdict(part[row]),
                    greedy=tokenizer.decode(greedy).strip(),
                    rank=1 + int((logprobs[0] > own[0]).sum()),
                    p_first=own[0].exp().item(),
                    p_target=own.sum().exp().item(),
                    recalled=greedy == target,
                )
            )
    return recalls


def fact_metrics(recalls: Sequence[Recall]) -> dict[str, Interval]:
    """Share recalled in each group, over subjects."""
    return {group: bootstrap_mean(list(values.values())) for group, values in recalled_by_subject(recalls).items()}


def recalled_by_subject(recalls: Sequence[Recall]) -> dict[str, dict[str, float]]:
    """group -> subject -> share recalled of its questions, subjects in order of appearance."""
    groups: dict[str, dict[str, list[bool]]] = {}
    for each in recalls:
        groups.setdefault(each.group, {}).setdefault(each.subject, []).append(each.recalled)
    return {
        group: {subject: float(np.mean(own)) for subject, own in subjects.items()} for group, subjects in groups.items()
    }
