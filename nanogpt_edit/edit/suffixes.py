"""Texts from the token on where δ is added, ready to be run through the upper blocks again and again.

Nothing that δ cannot reach is computed twice. The blocks up to the last edited one, and in the blocks above it the keys
and values of the tokens before δ's, are made once (`clean_runs`; what several texts begin with, once for all of them);
the last block computes only the tokens that are read. Texts are run in groups of nearly equal length, so that little is
padded.

Shapes: R texts, B of them in a group, Q longest suffix, P longest text before it, J most tokens read, M tokens read in
all, N facts, A layers above the last edited one, D model width, K heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanogpt_edit.edit.contexts import LocatedFact, pad_rows
from nanogpt_edit.edit.prefix import FrozenPrefix, Recorder, suffix_mask
from nanogpt_edit.model.gpt import GPT

BUSY_TOKENS = 256  # a group of so many is closed when the next text is longer
SHARED_TOKENS = 4  # texts that begin with so many equal ones are looked at together,
WORTH_TOKENS = 64  # and run so if that saves so many tokens
NOTHING = -100


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
    """(Q, D) `resid_post` of the last edited layer, from δ's token on."""
    prefix: Tensor
    """(P, 2A, K, E) keys and values above it of what stands before."""


@dataclass(frozen=True)
class _Group:
    fact: Tensor  # (B,)
    suffix: Tensor  # (B, Q, D) resid_post of the last edited layer
    positions: Tensor  # (B, Q)
    mask: Tensor  # (B, 1, Q, P + Q)
    prefix: Tensor  # (B, 2A, K, P, E) keys and values of what stands before
    columns: Tensor  # (B, J) the tokens read, as offsets into the suffix
    wanted: Tensor  # (B, J) what they should predict; NOTHING where a text has fewer

    def select(self, chosen: Tensor) -> _Group:
        parts = (self.fact, self.suffix, self.positions, self.mask, self.prefix, self.columns, self.wanted)
        return _Group(*(part[chosen] for part in parts))

    def states(self, model: GPT, delta: Tensor | None) -> Tensor:
        x, start = self.suffix, model.config.n_layer - self.prefix.shape[1] // 2
        if delta is not None:
            x = torch.cat((x[:, :1] + delta[self.fact][:, None].to(x.dtype), x[:, 1:]), dim=1)
        read = model.run_blocks(
            x,
            start=start,
            cache=FrozenPrefix(self.prefix, first_layer=start),
            position_ids=self.positions,
            attention_mask=self.mask,
            columns=self.columns,
        )
        return read[self.wanted != NOTHING]


@dataclass(frozen=True)
class Suffixes:
    """Some texts, in groups."""

    groups: tuple[_Group, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: GPT, texts: Sequence[Text], runs: Sequence[CleanRun]) -> Suffixes:
        """In groups of nearly equal length; `runs` are those of `texts`."""
        groups: list[list[int]] = [[]]
        tokens = 0
        for i in sorted(range(len(texts)), key=lambda i: (texts[i].length, len(texts[i].wanted))):
            if tokens >= BUSY_TOKENS and texts[i].length > texts[groups[-1][-1]].length:
                groups, tokens = [*groups, []], 0
            groups[-1].append(i)
            tokens += texts[i].length
        return cls(tuple(_group(model, [texts[i] for i in group], [runs[i] for i in group]) for group in groups))

    @property
    def fact(self) -> Tensor:
        """(M,) whose token each of those read is."""
        return torch.cat([g.fact[:, None].expand_as(g.wanted)[g.wanted != NOTHING] for g in self.groups])

    @property
    def wanted(self) -> Tensor:
        """(M,) what each should predict."""
        return torch.cat([g.wanted[g.wanted != NOTHING] for g in self.groups])

    def states(self, model: GPT, delta: Tensor | None = None) -> Tensor:
        """(M, D) normalised states of the tokens read, with δ (N, D) added if there is one."""
        return model.final(torch.cat([group.states(model, delta) for group in self.groups]))

    def select(self, alive: Tensor) -> Suffixes:
        """Only the texts of the facts where `alive` (N,) is true."""
        chosen = [(group, alive[group.fact]) for group in self.groups]
        return Suffixes(tuple(group.select(mine) for group, mine in chosen if mine.any()))


def _group(model: GPT, texts: Sequence[Text], runs: Sequence[CleanRun]) -> _Group:
    device = model.device
    starts = torch.tensor([text.start for text in texts], device=device)
    suffix = pad_sequence([run.suffix for run in runs], batch_first=True)
    prefix = pad_sequence([run.prefix for run in runs], batch_first=True)
    positions = starts[:, None] + torch.arange(suffix.shape[1], device=device)
    reads = [[text.length - len(text.wanted) + j for j in range(len(text.wanted))] for text in texts]
    return _Group(
        fact=torch.tensor([text.fact for text in texts], device=device),
        suffix=suffix,
        positions=positions.clamp_max(model.config.block_size - 1),
        mask=suffix_mask(starts, prefix=prefix.shape[1], length=suffix.shape[1]),
        prefix=prefix.permute(0, 2, 3, 1, 4).contiguous(),
        columns=pad_rows(reads, pad_id=0, device=device),
        wanted=pad_rows([text.wanted for text in texts], pad_id=NOTHING, device=device),
    )


@torch.no_grad()
def clean_runs(model: GPT, texts: Sequence[Text], *, last_layer: int) -> list[CleanRun]:
    """Every text's run without δ, which is to be added to `resid_post` of `last_layer`; in the order of `texts`."""
    runs: dict[int, CleanRun] = {}
    for family, shared in _families(texts):
        found = _family_runs(model, [texts[i] for i in family], shared, last_layer)
        runs |= dict(zip(family, found, strict=True))
    return [runs[i] for i in range(len(texts))]


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


def _family_runs(model: GPT, texts: Sequence[Text], shared: int, last_layer: int) -> list[CleanRun]:
    """Runs of texts whose first `shared` tokens are the same; these are run once."""
    above, columns = last_layer + 1, max(text.start for text in texts)
    both = _keys_and_values(model, texts[0].token_ids[:shared]).expand(len(texts), -1, -1, -1, -1)
    below, prefix = both[:, : 2 * above], both[:, 2 * above :]
    token_ids = pad_rows([text.token_ids[shared:] for text in texts], pad_id=0, device=model.device)
    positions = shared + torch.arange(token_ids.shape[1], device=model.device)
    x = model.embed_tokens(token_ids, positions)  # (B, T − shared, D)
    x = model.run_blocks(x, stop=above, cache=FrozenPrefix(below, first_layer=0), position_ids=positions)
    if columns > shared:
        recorder = Recorder(columns=columns, before=FrozenPrefix(prefix, first_layer=above))
        positions = positions[: columns - shared]
        model.run_blocks(x[:, : columns - shared], start=above, cache=recorder, position_ids=positions)
        prefix = recorder.stacked(like=x, config=model.config)  # (B, 2A, K, P, E)
    prefix = prefix.transpose(1, 3).transpose(2, 3)  # (B, P, 2A, K, E)
    return [
        CleanRun(suffix=x[i, text.start - shared : len(text.token_ids) - shared], prefix=prefix[i, : text.start])
        for i, text in enumerate(texts)
    ]


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
