"""How a model likes a target after a prompt: the one place where the two are put together, tokenised and scored.

Prompt and target are tokenised together, as lm-evaluation-harness does: a target tokenised apart would get a second
space token from a SentencePiece vocabulary, which begins every text with one.

Shapes: M target tokens of all rows (a prompt with a target each), V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.common.errors import UserError, quoted
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer, tokenizer_of
from nanogpt_edit.model.trees import last_states

BATCH_TOKENS = 2048  # in one forward pass; does not change the result
LOGIT_NUMBERS = 2**25  # most logits at once: 128 MB
NO_SPACE_BEFORE = re.compile(r"[.,;:!?%)\]}'’]")
UNSPACED_SCRIPT = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


@dataclass(frozen=True)
class TargetScore:
    """How a model likes one target after one prompt."""

    p_first: float
    """Probability of the target's first token."""
    rank: int
    """Its rank among all tokens; 1 is the model's own choice."""
    p_target: float
    """Probability of the whole target."""
    p_token: float
    """Geometric mean probability per target token; what targets are compared by."""
    token_accuracy: float
    """Share of the target's tokens that are the model's choice, given those before."""
    greedy: str = ""
    """The model's choice at each place of the target, given the target before it: the target itself where that is what
    greedy decoding writes."""


def join(prompt: str, target: str) -> tuple[str, str]:
    """Prompt and target as they follow each other: one space between them stands at the target's front.

    No space is put before punctuation, nor between scripts that are written without spaces.
    """
    prompt, target = prompt.rstrip(), target.strip()
    unspaced = UNSPACED_SCRIPT.match(target[:1]) and UNSPACED_SCRIPT.match(prompt[-1:])
    if unspaced or NO_SPACE_BEFORE.match(target):
        return prompt, target
    return prompt, " " + target


def target_ids(prompt: str, target: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Token ids of `target` as it continues `prompt`. Raises UserError when there are none."""
    before, after = join(prompt, target)
    ids = _continuation(tokenizer, before, after) if after.strip() else None
    # Where a token reaches over the border, no model that has read the prompt can write it: the target stands alone.
    ids = _continuation(tokenizer, "\n", after) if ids is None else ids
    if not ids or not after.strip():
        raise UserError(f"the target {quoted(target)} of {quoted(prompt)} has no tokens; fill it in.")
    return tuple(ids)


def check_length(prompt: str, tokens: int, model: GPT) -> None:
    """Raise UserError for a prompt that comes to more tokens, with its target, than `model` reads."""
    if tokens > model.config.block_size:
        raise UserError(
            f"{quoted(prompt)} comes to {tokens:,} tokens and the model reads {model.config.block_size:,}; shorten it."
        )


def _continuation(tokenizer: Tokenizer, before: str, after: str) -> list[int] | None:
    """The tokens of `after` behind those of `before`; None where one token holds the end of one and the start of the
    other."""
    own, whole = tokenizer.encode(before), tokenizer.encode(before + after)
    return whole[len(own) :] if whole[: len(own)] == own else None


@torch.inference_mode()
def score_targets(model: GPT, pairs: Sequence[tuple[str, str]]) -> list[TargetScore]:
    """The scores of (prompt, target) pairs, in a few batched passes with logits at target positions only.

    Raises UserError for a target without tokens, and for a prompt that is too long.
    """
    tokenizer = tokenizer_of(model)
    rows = [(tokenizer.encode(join(*pair)[0]), target_ids(*pair, tokenizer)) for pair in pairs]
    for (prompt, _), (own, target) in zip(pairs, rows, strict=True):
        check_length(prompt, len(own) + len(target) - 1, model)
    texts, counts = [(*prompt, *target[:-1]) for prompt, target in rows], [len(target) for _, target in rows]
    scores: dict[int, TargetScore] = {}
    model.eval()
    with progress("scoring", len(rows), "targets", brief=True) as bar:
        for numbers, states in last_states(model, texts, counts, batch_tokens=BATCH_TOKENS):
            found = _scores(model, states, [rows[i][1] for i in numbers], tokenizer)
            scores |= zip(numbers, found, strict=True)
            bar.update(len(scores))
    return [scores[i] for i in range(len(rows))]


def _scores(
    model: GPT, states: Tensor, targets: Sequence[tuple[int, ...]], tokenizer: Tokenizer
) -> Iterator[TargetScore]:
    """The score of each target, whose tokens follow `states` (M, D)."""
    wanted = torch.tensor([token for target in targets for token in target], device=model.device)
    room = max(1, LOGIT_NUMBERS // model.config.vocab_size)
    found: list[tuple[float, int, int]] = []  # of each target token: log-probability, rank, the model's own choice
    for part, tokens in zip(states.split(room), wanted.split(room), strict=True):
        logits = model.logits(part).float()  # (M, V)
        own = logits.gather(-1, tokens[:, None])
        logprobs = (own.squeeze(-1) - logits.logsumexp(-1)).tolist()
        found += zip(logprobs, (1 + (logits > own).sum(-1)).tolist(), logits.argmax(-1).tolist(), strict=True)
    each = iter(found)
    return (_score([next(each) for _ in target], tokenizer) for target in targets)


def _score(tokens: Sequence[tuple[float, int, int]], tokenizer: Tokenizer) -> TargetScore:
    logprobs, ranks, choices = zip(*tokens, strict=True)
    return TargetScore(
        p_first=math.exp(logprobs[0]),
        rank=ranks[0],
        p_target=math.exp(sum(logprobs)),
        p_token=math.exp(sum(logprobs) / len(logprobs)),
        token_accuracy=sum(rank == 1 for rank in ranks) / len(ranks),
        greedy=tokenizer.decode(choices).strip(),
    )
