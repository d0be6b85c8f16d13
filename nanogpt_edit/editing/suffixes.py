"""Texts from the token on where δ is added, ready to be run through the upper blocks again and again.

Nothing that δ cannot reach is computed twice. `clean_runs` takes every text without δ once: the blocks up to the last
edited one, and in the blocks above it the keys and values of the tokens before δ's. `Suffixes` runs what is left,
behind one another (`model/ragged`); its last block computes only the tokens that are read.

Shapes: R texts, T tokens from δ's on of all of them, M of these read, Q and P tokens of one text from δ's on and
before, N facts, A layers above δ's, D model width, K heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nanogpt_edit.editing.contexts import LocatedFact
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.ragged import Layout, Ragged, Recorded, Recorder, Segment, like_lengths

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
    """(Q, D) `resid_post` of δ's layer, from δ's token on."""
    prefix: Tensor
    """(P, 2A, K, E) keys and values above it of what stands before."""


@torch.no_grad()
def clean_runs(model: GPT, texts: Sequence[Text], *, last_layer: int) -> list[CleanRun]:
    """Every text's run without δ, which is to be added to `resid_post` of `last_layer`; in the order of `texts`."""
    above = last_layer + 1
    whole = Layout.of([text.token_ids for text in texts], device=model.device)
    x = model.embed_tokens(whole.token_ids, whole.positions)
    x = model.run_blocks(x, stop=above, view=whole.view, position_ids=whole.positions)  # (1, T, D)
    prefixes = _prefixes(model, texts, whole, x, above)
    return [
        CleanRun(suffix=x[0, place[text.start :]], prefix=prefix)
        for text, place, prefix in zip(texts, whole.places, prefixes, strict=True)
    ]


def _prefixes(model: GPT, texts: Sequence[Text], whole: Layout, x: Tensor, above: int) -> list[Tensor]:
    """(P, 2A, K, E) each: keys and values of the tokens before δ's, in the layers from `above` on."""
    config = model.config
    width = (2 * (config.n_layer - above), config.kv_heads, config.head_size)
    found = [x.new_zeros(text.start, *width) for text in texts]
    late = [i for i, text in enumerate(texts) if text.start > 0]
    if late and above < config.n_layer:
        early = Layout.of([texts[i].token_ids[: texts[i].start] for i in late], device=model.device)
        recorder = Recorder(early.view)
        model.run_blocks(x[:, early.within(whole, late)], start=above, view=recorder, position_ids=early.positions)
        kept = recorder.stacked()[0].permute(2, 0, 1, 3).contiguous()  # (tokens, 2A, K, E)
        for i, place in zip(late, early.places, strict=True):
            found[i] = kept[place]
    return found


@dataclass(frozen=True)
class Suffixes:
    """Some texts from δ's token on, behind one another, those of like length together."""

    segments: tuple[Segment, ...]
    """What is looked at together, with the keys and values before."""
    facts: Tensor
    """(R,) each text's fact."""
    states_below: Tensor
    """(T, D) `resid_post` of δ's layer, without δ."""
    positions: Tensor
    """(T,)"""
    labels: Tensor
    """(T,) what each token should predict; NOTHING where it is not read."""
    start: int
    """The first layer above δ's."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: GPT, texts: Sequence[Text], runs: Sequence[CleanRun]) -> Suffixes:
        """`runs` are those of `texts`."""
        device, start = model.device, model.config.n_layer - runs[0].prefix.shape[1] // 2
        order = sorted(range(len(texts)), key=lambda i: texts[i].length)
        ordered, lengths = [texts[i] for i in order], [texts[i].length for i in order]
        segments = tuple(
            Segment(
                torch.tensor(lengths[rows], device=device),
                before=Recorded.of([runs[i].prefix for i in order[rows]], first_layer=start),
            )
            for rows in like_lengths(lengths, device)
        )
        labels = [[NOTHING] * (text.length - len(text.wanted)) + list(text.wanted) for text in ordered]
        return cls(
            segments=segments,
            facts=torch.tensor([text.fact for text in ordered], device=device),
            states_below=torch.cat([runs[i].suffix for i in order]),
            positions=torch.cat([torch.arange(text.start, len(text.token_ids)) for text in ordered]).to(device),
            labels=torch.tensor([label for row in labels for label in row], device=device),
            start=start,
        )

    @cached_property
    def lengths(self) -> Tensor:
        """(R,)"""
        return torch.cat([segment.lengths for segment in self.segments])

    @cached_property
    def firsts(self) -> Tensor:
        """(R,) the places of the tokens where δ is added."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def reads(self) -> Tensor:
        """(M,) the places of the tokens read."""
        return (self.labels != NOTHING).nonzero()[:, 0]

    @cached_property
    def fact(self) -> Tensor:
        """(M,) whose token each of those read is."""
        return self.facts.repeat_interleave(self.lengths)[self.reads]

    @cached_property
    def row(self) -> Tensor:
        """(M,) in which text each of those read is."""
        return torch.arange(len(self.facts), device=self.facts.device).repeat_interleave(self.lengths)[self.reads]

    @cached_property
    def wanted(self) -> Tensor:
        """(M,) what each should predict."""
        return self.labels[self.reads]

    @cached_property
    def view(self) -> Ragged:
        return Ragged(self.segments)

    def states(self, model: GPT, delta: Tensor | None = None) -> Tensor:
        """(M, D) normalised states of the tokens read, with δ (N, D) added if there is one."""
        x = self.states_below
        if delta is not None:
            x = x.index_add(0, self.firsts, delta.index_select(0, self.facts).to(x.dtype))
        read = model.run_blocks(
            x[None], start=self.start, view=self.view, position_ids=self.positions[None], columns=self.reads[None]
        )
        return model.final(read[0])

    def select(self, alive: Tensor) -> Suffixes:
        """Only the texts of the facts where `alive` (N,) is true."""
        chosen = alive[self.facts]
        tokens = chosen.repeat_interleave(self.lengths)
        rows = chosen.split([len(segment.lengths) for segment in self.segments])
        return Suffixes(
            segments=tuple(
                segment.select(mine) for segment, mine in zip(self.segments, rows, strict=True) if mine.any()
            ),
            facts=self.facts[chosen],
            states_below=self.states_below[tokens],
            positions=self.positions[tokens],
            labels=self.labels[tokens],
            start=self.start,
        )

    def __add__(self, other: Suffixes) -> Suffixes:
        """The texts of both, one after the other."""
        return Suffixes(
            segments=self.segments + other.segments,
            facts=torch.cat((self.facts, other.facts)),
            states_below=torch.cat((self.states_below, other.states_below)),
            positions=torch.cat((self.positions, other.positions)),
            labels=torch.cat((self.labels, other.labels)),
            start=self.start,
        )
