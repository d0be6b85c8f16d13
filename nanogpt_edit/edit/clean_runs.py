"""Texts without δ: the states from δ's token on, and the keys and values of what stands before it.

What several texts begin with is run once for all of them; the rest of all texts goes through the model together, in
groups of nearly equal length. Above the layer where δ is to be added only the tokens before it are run.

Shapes: B texts of a group, W tokens behind what they share, Q tokens from δ's on, P tokens before δ's, N facts, A
layers above δ's, D model width, K heads, E head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.edit.contexts import LocatedFact, pad_rows
from nanogpt_edit.edit.prefix import Ends, FrozenPrefix, Recorder, run_abreast, suffix_mask
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache

BUSY_TOKENS = 64  # a group of so many is closed when the next text is longer
SHARED_TOKENS = 4  # texts that begin with so many equal ones are looked at together,
WORTH_TOKENS = 64  # and run so if that saves so many tokens


@dataclass(frozen=True)
class Text:
    """`Text(fact=3, token_ids=(5, 9, 2, 7), start=1, wanted=(7, 4))`: δ of fact 3 is added at token 1, and the states
    of the last two tokens are read, which should predict 7 and 4."""

    fact: int
    token_ids: tuple[int, ...]
    start: int
    wanted: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the suffix."""
        return len(self.token_ids) - self.start


def texts_of(facts: Sequence[LocatedFact], *, from_subject: bool) -> list[Text]:
    """Every context of every fact with the target behind it, from the subject's last token on or whole."""
    return [
        Text(i, (*row.token_ids, *fact.target_ids[:-1]), row.subject_last if from_subject else 0, fact.target_ids)
        for i, fact in enumerate(facts)
        for row in fact.contexts
    ]


def token_weight(facts: Sequence[LocatedFact]) -> Tensor:
    """(N,) what one target token counts in the mean over its fact's contexts and tokens."""
    return torch.tensor([1 / (len(fact.target_ids) * len(fact.contexts)) for fact in facts])


@dataclass(frozen=True)
class CleanRun:
    """What a text is without δ."""

    suffix: Tensor
    """(Q, D) `resid_post` of δ's layer, from δ's token on."""
    prefix: Tensor
    """(P, 2A, K, E) keys and values above it of what stands before."""


@torch.no_grad()
def clean_runs(model: GPT, texts: Sequence[Text], *, last_layer: int) -> list[CleanRun]:
    """Every text's run without δ, which is to be added to `resid_post` of `last_layer`; in the order of `texts`."""
    above = last_layer + 1
    rests = [rest for family, shared in _families(texts) for rest in _rests(model, texts, family, shared)]
    x = [model.embed_tokens(rest.token_ids, rest.positions) for rest in rests]  # (B, W, D) each
    x = run_abreast(model, x, [rest.ends(rest.before(0, above)) for rest in rests], stop=above)
    runs: dict[int, CleanRun] = {}
    for rest, own, prefix in zip(rests, x, _prefixes(model, rests, x, above), strict=True):
        for row, i in enumerate(rest.numbers):
            here = slice(texts[i].start - rest.shared, len(texts[i].token_ids) - rest.shared)
            runs[i] = CleanRun(suffix=own[row, here], prefix=prefix[row, : texts[i].start])
    return [runs[i] for i in range(len(texts))]


@dataclass(frozen=True)
class _Rest:
    """Some texts of a family, behind what they share."""

    numbers: tuple[int, ...]  # which texts
    token_ids: Tensor  # (B, W)
    positions: Tensor  # (B, W)
    shared: int  # tokens
    keys_and_values: Tensor  # (1, 2 · layers, K, shared, E) of what is shared
    latest: int  # where the last δ begins

    def before(self, start: int, stop: int) -> FrozenPrefix:
        """What is shared, for layers `start` up to `stop`."""
        recorded = self.keys_and_values[:, 2 * start : 2 * stop].expand(len(self.token_ids), -1, -1, -1, -1)
        return FrozenPrefix(recorded, first_layer=start)

    def ends(self, before: KVCache, *, stop: int | None = None) -> Ends:
        """All of it, or up to token `stop`."""
        starts = torch.full((len(self.token_ids),), self.shared, device=self.token_ids.device)
        positions = self.positions[:, : None if stop is None else stop - self.shared]
        return Ends(before, positions, suffix_mask(starts, prefix=self.shared, length=positions.shape[1]))


def _prefixes(model: GPT, rests: Sequence[_Rest], x: Sequence[Tensor], above: int) -> list[Tensor]:
    """(B, P, 2A, K, E) each: keys and values of the tokens before δ's, in the layers from `above` on."""
    keepers = {
        i: Recorder(columns=rest.latest, before=rest.before(above, model.config.n_layer))
        for i, rest in enumerate(rests)
        if rest.latest > rest.shared
    }
    run_abreast(
        model,
        [x[i][:, : rests[i].latest - rests[i].shared] for i in keepers],
        [rests[i].ends(keeper, stop=rests[i].latest) for i, keeper in keepers.items()],
        start=above,
    )
    found = [rest.before(above, model.config.n_layer).recorded for rest in rests]  # enough where no token is between
    for i, keeper in keepers.items():
        found[i] = keeper.stacked(like=x[i], config=model.config)
    return [each.transpose(1, 3).transpose(2, 3) for each in found]


def _rests(model: GPT, texts: Sequence[Text], family: Sequence[int], shared: int) -> Iterator[_Rest]:
    """A family in groups of nearly equal length."""
    keys_and_values = _keys_and_values(model, texts[family[0]].token_ids[:shared])
    for group in by_length([(len(texts[i].token_ids) - shared,) for i in family]):
        numbers = tuple(family[k] for k in group)
        token_ids = pad_rows([texts[i].token_ids[shared:] for i in numbers], pad_id=0, device=model.device)
        positions = (shared + torch.arange(token_ids.shape[1], device=model.device)).expand_as(token_ids)
        latest = max(texts[i].start for i in numbers)
        yield _Rest(numbers, token_ids, positions, shared, keys_and_values, latest)


def by_length(lengths: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """The numbers of texts, in groups of nearly equal length (the first of each tuple, in tokens)."""
    groups: list[list[int]] = [[]]
    tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if tokens >= BUSY_TOKENS and lengths[i] > lengths[groups[-1][-1]]:
            groups, tokens = [*groups, []], 0
        groups[-1].append(i)
        tokens += lengths[i][0]
    return groups


def _families(texts: Sequence[Text]) -> list[tuple[list[int], int]]:
    """The texts' numbers, by what they begin with, and how many tokens they share; all that share little together."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, text in enumerate(texts):
        alike.setdefault(text.token_ids[: min(SHARED_TOKENS, text.start)], []).append(i)
    families: list[tuple[list[int], int]] = []
    others: list[int] = []
    for members in alike.values():
        shared = _shared_tokens([texts[i] for i in members])
        if shared * (len(members) - 1) >= WORTH_TOKENS:
            families.append((members, shared))
        else:
            others += members
    return [*families, (others, 0)] if others else families


def _shared_tokens(texts: Sequence[Text]) -> int:
    """How many tokens before δ's are the same in all of them."""
    room = min(text.start for text in texts)
    columns = zip(*(text.token_ids[:room] for text in texts), strict=True)
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), room)


def _keys_and_values(model: GPT, token_ids: Sequence[int]) -> Tensor:
    """(1, 2 · layers, K, tokens, E) of a text, which may be empty."""
    config = model.config
    if not token_ids:
        return torch.empty(
            1, 2 * config.n_layer, config.kv_heads, 0, config.head_size, device=model.device, dtype=model.dtype
        )
    recorder = Recorder(columns=len(token_ids))
    x = model.embed_tokens(torch.tensor([token_ids], device=model.device))
    model.run_blocks(x, cache=recorder)
    return recorder.stacked(like=x, config=config)
