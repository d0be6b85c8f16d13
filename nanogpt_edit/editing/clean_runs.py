"""Texts without δ: the states from δ's token on, and the keys and values of what stands before it.

All texts go through the model as one long row (`long_row`); above the layer where δ is to be added only the tokens
before it.

Shapes: T tokens of the long row, Q tokens of a text from δ's on, P tokens before, N facts, A layers above δ's, D model
width, K heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.editing.contexts import LocatedFact
from nanogpt_edit.editing.long_row import Layout
from nanogpt_edit.model.gpt import GPT


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
    x = model.run_blocks(x, stop=above, view=whole.cache(), position_ids=whole.positions)  # (1, T, D)
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
        row = early.cache(keeps=True)
        model.run_blocks(x[:, early.within(whole, late)], start=above, view=row, position_ids=early.positions)
        kept = torch.stack(row.kept).permute(2, 0, 1, 3).contiguous()  # (T, 2A, K, E)
        for i, place in zip(late, early.places, strict=True):
            found[i] = kept[place]
    return found
