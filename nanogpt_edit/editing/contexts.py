"""The texts an edit is tried in: prefixes the model writes itself, and rows of tokens with the subject marked.

Every fact has the same number of rows: its prompt and its rewordings bare, each prefix with one of them behind it, in
turn, and "{subject} is a", on which the value optimisation keeps what the subject is. Rows are right padded, so that
causal attention needs no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.data.batch import within_budget
from nanogpt_edit.data.facts import Fact, Lookup, locate_subject
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.evaluation.targets import join, target_ids
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache
from nanogpt_edit.model.tokenizer import tokenizer_of

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


@progress("writing prefixes")
@torch.no_grad()
def generate_prefixes(model: GPT, config: EditConfig) -> tuple[str, ...]:
    """`n_prefixes` texts of about `prefix_tokens` tokens in the model's own words, each ending in ". " (seeded)."""
    tokenizer = tokenizer_of(model)
    count, steps, kept = config.n_prefixes, config.prefix_tokens, min(PREFIX_TOP_K, tokenizer.vocab_size)
    dice = torch.Generator().manual_seed(config.seed)
    luck = [[torch.empty(kept).exponential_(generator=dice) for _ in range(steps)] for _ in range(count)]
    never = [i for i in (tokenizer.eos_id, *tokenizer.reasoning_ids) if i is not None and i < tokenizer.vocab_size]

    def choose(logits: Tensor, row: int, step: int) -> int:
        """One of the likeliest few, drawn from their probabilities p: the argmax of p / luck."""
        logits = logits[: tokenizer.vocab_size].float().cpu()
        logits[never] = -torch.inf
        top, ids = logits.topk(kept)
        return int(ids[(top.softmax(-1) / luck[row][step]).argmax()])

    texts = [tokenizer.encode(PREFIX_SEEDS[index % len(PREFIX_SEEDS)]) for index in range(count)]
    return tuple(_sentence(tokenizer.decode(text)) for text in _continued(model, texts, steps, choose))


def _continued(
    model: GPT, texts: list[list[int]], steps: int, choose: Callable[[Tensor, int, int], int]
) -> list[list[int]]:
    """Every text with `steps` tokens more, `choose(logits, row, step)` each; all rows in one batch."""
    if not texts or not steps:
        return texts
    lengths = torch.tensor([len(text) for text in texts], device=model.device)
    rows, longest = len(texts), max(map(len, texts))
    cache = KVCache(model.config, rows=rows, capacity=longest + steps, device=model.device, dtype=model.dtype)
    columns = torch.arange(longest + steps, device=model.device)
    is_token = (columns < lengths[:, None]) | (columns >= longest)  # (rows, capacity): new tokens go behind the padding
    states = model.hidden(pad_rows(texts, pad_id=0, device=model.device), view=cache)[range(rows), lengths - 1]
    for step in range(steps):
        if step > 0:
            states = model.hidden(
                torch.tensor([text[-1:] for text in texts], device=model.device),
                view=cache,
                position_ids=(lengths + step - 1)[:, None],
                attention_mask=is_token[:, None, None, : longest + step],
            )[:, 0]
        chosen = [choose(logits, row, step) for row, logits in enumerate(model.logits(states))]
        texts = [[*text, token] for text, token in zip(texts, chosen, strict=True)]
    return texts


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

    def needed(fact: LocatedFact) -> int:
        return sum(len(row.token_ids) + len(fact.target_ids) for row in (*fact.contexts, fact.essence))

    return list(within_budget(facts, needed, max_tokens=tokens))
