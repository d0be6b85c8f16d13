"""The texts an edit is tried in: prefixes the model writes itself, and rows of tokens with the subject marked.

Every fact has the same number of rows: its prompt and its rewordings bare, each prefix with one of them behind it, in
turn, and "{subject} is a", on which the value optimisation keeps what the subject is. Rows are right padded, so that
causal attention needs no mask.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle, islice
from operator import itemgetter

import torch
from torch import Tensor

from nanogpt_edit.common.terminal import progress
from nanogpt_edit.data.batch import within_budget
from nanogpt_edit.data.facts import Fact, Lookup, locate_subject
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import RestrictedSampling
from nanogpt_edit.evaluation.targets import check_length, join, target_ids
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of

ESSENCE = "{} is a"
SENTENCE_ENDS = (".", "!", "?")
PREFIX_SEEDS = ("The", "Therefore", "Because", "I", "You")
PREFIX_TOP_K = 5


@dataclass(frozen=True)
class TokenRow:
    """One text as tokens: `TokenRow((5, 9, 2), subject_last=1)`."""

    token_ids: tuple[int, ...]
    subject_last: int


@dataclass(frozen=True)
class LocatedFact:
    """A fact as tokens, with its subject found in every row."""

    fact: Fact
    contexts: tuple[TokenRow, ...]
    """What the edit is made with: the bare prompt first, then the rewordings, then one of these behind each prefix."""
    bare: TokenRow
    """The prompt by itself, also where it is not among the contexts."""
    prompts: int
    """How many of the contexts have no generated text in front."""
    essence: TokenRow
    """"{subject} is a"."""
    target_ids: tuple[int, ...]
    lookup: Lookup


def locate_facts(
    model: GPT, facts: Sequence[Fact], prefixes: Sequence[str], *, allow_partial: bool = False, full_stop: bool = False
) -> tuple[LocatedFact, ...]:
    """Every fact as tokens, its target with a `full_stop` behind it or not.

    A fact with fewer rewordings than the others has some of its prompts twice.

    Raises UserError for a subject that is not in its prompt or a text that is too long.
    """
    ways = 1 + max(len(fact.rewordings) for fact in facts)
    end = "." if full_stop else ""
    return tuple(_locate(model, fact, ways, prefixes, allow_partial, end) for fact in facts)


def _locate(model: GPT, fact: Fact, ways: int, prefixes: Sequence[str], allow_partial: bool, end: str) -> LocatedFact:
    tokenizer, room = tokenizer_of(model), model.config.block_size
    answer = fact.target_new.strip()
    target = target_ids(fact.prompt, answer if answer.endswith(SENTENCE_ENDS) else answer + end, tokenizer)
    prompts = [join(prompt, fact.target_new)[0] for prompt in islice(cycle((fact.prompt, *fact.rewordings)), ways)]
    bare = [locate_subject(prompt, fact.subject, tokenizer, allow_partial=allow_partial) for prompt in prompts]
    for prompt, found in zip(prompts, bare, strict=True):
        check_length(prompt, len(found.token_ids) + len(target) - 1, model)
    rows = [TokenRow(found.token_ids, found.last) for found in bare]
    for index, prefix in enumerate(prefixes):
        prompt, row = prompts[index % ways], rows[index % ways]
        found = locate_subject(prompt, fact.subject, tokenizer, allow_partial=allow_partial, prefix=prefix)
        fits = len(found.token_ids) + len(target) - 1 <= room
        rows.append(TokenRow(found.token_ids, found.last) if fits else row)
    subject = prompts[0][bare[0].span.start : bare[0].span.end]
    essence = locate_subject(ESSENCE.format(subject), subject, tokenizer)
    return LocatedFact(
        fact=fact,
        contexts=tuple(rows),
        bare=rows[0],
        prompts=ways,
        essence=TokenRow(essence.token_ids, essence.last),
        target_ids=target,
        lookup=bare[0].span.lookup,
    )


@progress("writing prefixes")
def generate_prefixes(model: GPT, config: EditConfig) -> tuple[str, ...]:
    """`n_prefixes` texts of about `prefix_tokens` tokens in the model's own words, each ending in ". " (seeded)."""
    tokenizer, seeds = tokenizer_of(model), cycle(PREFIX_SEEDS)
    texts = [tokenizer.encode(seed) for seed in islice(seeds, config.n_prefixes)]
    if texts and config.prefix_tokens:
        special = [i for i in (tokenizer.eos_id, *tokenizer.reasoning_ids) if i is not None]
        banned = tuple(i for i in special if i < tokenizer.vocab_size)
        sampling = RestrictedSampling(
            1.0, PREFIX_TOP_K, max_new_tokens=config.prefix_tokens, seed=config.seed, banned_ids=banned
        )
        written = Engine(model).generate(texts, sampling=sampling)
        texts = [[*text, *completion.token_ids] for text, completion in zip(texts, written, strict=True)]
    return tuple(_sentence(tokenizer.decode(text)) for text in texts)


def _sentence(text: str) -> str:
    """Half-cut characters and line ends away, a full stop and a space behind."""
    text = " ".join(text.replace("\ufffd", "").split())
    return text.rstrip(" .,;:!?") + ". "


def pad_rows(rows: Sequence[Sequence[int]], *, pad_id: int, device: torch.device) -> Tensor:
    """(rows, longest) int64, right padded."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], device=device)


def first_rows(counts: Sequence[int]) -> list[int]:
    """Where each fact's contexts begin among all of them: [3, 2, 3] -> [0, 3, 5]."""
    return [0, *accumulate(counts[:-1])]


def in_chunks(facts: Sequence[LocatedFact], tokens: int) -> list[list[LocatedFact]]:
    """The facts in as few groups as there can be whose texts hold at most so many tokens (or one fact), the largest as
    small as it can be."""
    needed = [
        sum(len(row.token_ids) + len(fact.target_ids) for row in (*fact.contexts, fact.essence)) for fact in facts
    ]

    def groups(room: int) -> list[list[tuple[LocatedFact, int]]]:
        return list(within_budget(zip(facts, needed, strict=True), itemgetter(1), max_tokens=room))

    few = len(groups(tokens))
    least = bisect_left(range(tokens), True, key=lambda room: len(groups(room)) <= few)
    return [[fact for fact, _ in group] for group in groups(least)]
