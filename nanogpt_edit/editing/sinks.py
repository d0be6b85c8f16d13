"""The first token of a text, where a decoder keeps an attention sink, and what that means for an edit.

Attention that has nothing to look at looks at a text's first token, and pretrained models write a state of enormous
norm there that hardly depends on the token (Xiao et al. 2024; Sun et al. 2024): in SmolLM2-135M ‖h‖ is 24,000 after
layer 11, 160 at every other token. A value added to such a state changes nothing that later tokens read, and its key is
that of every other first token. Which layers have it, one forward pass shows.

So a text whose subject ends where the state at the last edited layer is a sink takes no part in the edit: it can
neither find a value nor hold one, and its key would drown the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanogpt_edit.common.errors import visible
from nanogpt_edit.common.terminal import say
from nanogpt_edit.editing.contexts import LocatedFact
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.ragged import Layout

SINK_FACTOR = 4.0  # times the median norm of a layer's states, from which a state is a sink


@dataclass(frozen=True)
class SinkNorms:
    """`SinkNorms(first=24100.0, others=160.0)`: ‖h‖ after a layer, at first tokens and elsewhere (medians)."""

    first: float
    others: float

    @property
    def is_sink(self) -> bool:
        return self.first > SINK_FACTOR * self.others


@torch.no_grad()
def sink_norms(model: GPT, blocks: Tensor) -> list[SinkNorms]:
    """Of every layer's `resid_post` over `blocks` (N, T) of token ids, in one pass."""
    x = model.embed_tokens(blocks.to(model.device))
    found: list[SinkNorms] = []
    for layer in range(model.config.n_layer):
        x = model.run_blocks(x, start=layer, stop=layer + 1)
        norms = x.float().norm(dim=-1)  # (N, T)
        others = norms[:, 1:] if norms.shape[1] > 1 else norms
        found.append(SinkNorms(float(norms[:, 0].median()), float(others.median())))
    return found


@torch.no_grad()
def without_sinks(model: GPT, facts: Sequence[LocatedFact], layer: int) -> tuple[LocatedFact, ...]:
    """The facts without the texts whose subject ends in a sink after `layer`; one that has no other keeps its own."""
    texts = [row.token_ids[: row.subject_last + 1] for fact in facts for row in fact.contexts]
    layout = Layout.of(texts, device=model.device)
    x = model.embed_tokens(layout.token_ids, layout.positions)
    x = model.run_blocks(x, stop=layer + 1, view=layout.view, position_ids=layout.positions)
    norms = x[0].float().norm(dim=-1)
    limit = SINK_FACTOR * norms.median()
    is_sink = iter([bool(norms[place[-1]] > limit) for place in layout.places])
    return tuple(_without(fact, [next(is_sink) for _ in fact.contexts]) for fact in facts)


def _without(fact: LocatedFact, is_sink: Sequence[bool]) -> LocatedFact:
    kept = tuple(row for row, sink in zip(fact.contexts, is_sink, strict=True) if not sink)
    prompts = fact.prompts - sum(is_sink[: fact.prompts])
    return replace(fact, contexts=kept, prompts=prompts) if kept else fact


def leave_out_sinks(model: GPT, facts: Sequence[LocatedFact], layer: int) -> tuple[LocatedFact, ...]:
    """`without_sinks`, and what that means for whom."""
    kept = without_sinks(model, facts, layer)
    lost = [fact for fact, now in zip(facts, kept, strict=True) if fact.bare not in now.contexts]
    if lost:
        say(
            f"The subject of {len(lost)} of {len(facts)} facts is the first token of its prompt (as in "
            f'"{visible(lost[0].fact.prompt)}"), where layer {layer} holds an attention sink: a state so large that '
            "nothing added to it is read. Such a fact is edited behind other text only; with the prompt alone it stays "
            "as it was. A last layer without the sink, or text in front of the prompt, mends it."
        )
    return kept
