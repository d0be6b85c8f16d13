"""The texts an edit is tried in: prefixes the model writes itself, and rows of tokens with the subject marked.

Every fact has the same number of rows: its prompt and its rewordings bare, each prefix with one of them behind it, in
turn, and "{subject} is a", on which the value optimisation keeps what the subject is. Rows are right padded, so that
causal attention needs no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from nanogpt_edit.edit.config import EditConfig
from nanogpt_edit.edit.facts import Fact, Lookup, join, locate_subject, target_ids
from nanogpt_edit.errors import UserError
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer

ESSENCE = "{} is a"
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
    """The bare prompt first, then the rewordings, then one of these behind each prefix."""
    essence: TokenRow
    """"{subject} is a"."""
    target_ids: tuple[int, ...]
    lookup: Lookup


def tokenizer_of(model: GPT) -> Tokenizer:
    """The tokenizer that came with the model. Raises UserError when there is none."""
    if model.tokenizer is None:
        raise UserError("the model carries no tokenizer; load it from a directory that has tokenizer.json.")
    return model.tokenizer


def locate_facts(
    model: GPT, facts: Sequence[Fact], prefixes: Sequence[str], *, allow_partial: bool = False
) -> tuple[LocatedFact, ...]:
    """Every fact as tokens. A fact with fewer rewordings than the others has some of its prompts twice.

    Raises UserError for a subject that is not in its prompt or a text that is too long.
    """
    ways = 1 + max(len(fact.rewordings) for fact in facts)
    return tuple(_locate(model, fact, ways, prefixes, allow_partial) for fact in facts)


def _locate(model: GPT, fact: Fact, ways: int, prefixes: Sequence[str], allow_partial: bool) -> LocatedFact:
    tokenizer, room = tokenizer_of(model), model.config.block_size
    target = target_ids(fact.prompt, fact.target_new, tokenizer)
    prompts = [join(prompt, fact.target_new)[0] for prompt in islice(cycle((fact.prompt, *fact.rewordings)), ways)]
    bare = [locate_subject(prompt, fact.subject, tokenizer, allow_partial=allow_partial) for prompt in prompts]
    for prompt, found in zip(prompts, bare, strict=True):
        tokens = len(found.token_ids) + len(target)
        if tokens - 1 > room:
            raise UserError(f'"{prompt}" takes {tokens} tokens with its target; the model reads {room}. Shorten it.')
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
        essence=TokenRow(essence.token_ids, essence.last),
        target_ids=target,
        lookup=bare[0].span.lookup,
    )


@torch.no_grad()
def generate_prefixes(model: GPT, config: EditConfig) -> tuple[str, ...]:
    """`n_prefixes` texts of about `prefix_tokens` tokens in the model's own words, each ending in ". " (seeded)."""
    tokenizer = tokenizer_of(model)
    generator = torch.Generator().manual_seed(config.seed)
    prefixes: list[str] = []
    for index in range(config.n_prefixes):
        token_ids = tokenizer.encode(PREFIX_SEEDS[index % len(PREFIX_SEEDS)])
        for _ in range(config.prefix_tokens):
            logits = model(torch.tensor([token_ids], device=model.device))[0, -1, : tokenizer.vocab_size].float().cpu()
            for never in (tokenizer.eos_id, *tokenizer.reasoning_ids):
                if never is not None and never < len(logits):
                    logits[never] = -torch.inf
            top, ids = logits.topk(min(PREFIX_TOP_K, len(logits)))
            token_ids.append(int(ids[torch.multinomial(top.softmax(-1), 1, generator=generator)]))
        prefixes.append(_sentence(tokenizer.decode(token_ids)))
    return tuple(prefixes)


def _sentence(text: str) -> str:
    """Half-cut characters and line ends away, a full stop and a space behind."""
    text = " ".join(text.replace("\ufffd", "").split())
    return text.rstrip(" .,;:!?") + ". "


def pad_rows(rows: Sequence[Sequence[int]], *, pad_id: int, device: torch.device) -> Tensor:
    """(rows, longest) int64, right padded."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], device=device)


def in_chunks(facts: Sequence[LocatedFact], tokens: int) -> list[list[LocatedFact]]:
    """The facts in groups whose texts hold at most so many tokens (or one fact)."""
    chunks: list[list[LocatedFact]] = []
    room = 0
    for fact in facts:
        needed = sum(len(row.token_ids) + len(fact.target_ids) for row in (*fact.contexts, fact.essence))
        if not chunks or needed > room:
            chunks, room = [*chunks, []], tokens
        chunks[-1].append(fact)
        room -= needed
    return chunks
