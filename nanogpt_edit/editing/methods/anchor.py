"""Values of one norm (Norm-Anchor Scaling; Liu et al. 2026), an option of every method that finds values.

Edited in sequence, a model's values and weights make each other grow: the larger the weights, the larger the values
found on them, until the model breaks down. Here what the last edited MLP is to write, v = MLP(k) + δ, is scaled to the
norm that such values have on the untouched model,

    v ← v · n̄ / ‖v‖        n̄ the mean of ‖v‖ over the first batch, its largest twentieth left out

and a fact whose ‖v‖ is more than 2 n̄ stays unedited. The authors take n̄ from MEMIT's values of a sample of
CounterFact; here it is that of the edit's own first batch, so that nothing else is needed.

Shapes: N facts, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nanogpt_edit.editing.contexts import LocatedFact, pad_rows
from nanogpt_edit.editing.values import TargetValues
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.sites import capture
from nanogpt_edit.model.tokenizer import tokenizer_of

DROPPED_SHARE = 0.05  # of the largest norms
OUTLIER = 2.0  # times n̄


class NormAnchor:
    """Scales the values of a sequence of batches; the first decides to which norm."""

    def __init__(self) -> None:
        self.norm: float | None = None

    def __call__(self, model: GPT, facts: Sequence[LocatedFact], found: TargetValues, layer: int) -> TargetValues:
        """The values v* (N, D) of a batch, found at `layer`, with what the MLP is to write there scaled."""
        h, written = subject_outputs(model, facts, layer)
        wanted = written + found.values.to(h) - h
        if self.norm is None:
            self.norm = usual_norm(wanted.norm(dim=1))
        values = h - written + anchored(wanted, written, self.norm)
        shifts = (values - h).norm(dim=1) / h.norm(dim=1)
        return replace(found, values=values.cpu(), shifts=tuple(shifts.tolist()))


def usual_norm(norms: Tensor) -> float:
    """The mean of `norms` (N,) without the largest twentieth."""
    return float(norms.sort().values[: len(norms) - int(DROPPED_SHARE * len(norms))].mean())


def anchored(wanted: Tensor, written: Tensor, norm: float) -> Tensor:
    """`wanted` (N, D) scaled to `norm`; where it is far beyond, what is `written` (N, D) without an edit."""
    norms = wanted.norm(dim=1, keepdim=True)
    return torch.where(norms > OUTLIER * norm, written, wanted * (norm / norms))


@torch.no_grad()
def subject_outputs(model: GPT, facts: Sequence[LocatedFact], layer: int) -> tuple[Tensor, Tensor]:
    """`resid_post` and `mlp_out` of `layer`, (N, D) float32, at the subject in each fact's first context."""
    rows = [fact.contexts[0].token_ids[: fact.contexts[0].subject_last + 1] for fact in facts]
    token_ids = pad_rows(rows, pad_id=tokenizer_of(model).pad_id, device=model.device)
    with capture(model, [("mlp_out", layer)]) as seen:
        states = model.run_blocks(model.embed_tokens(token_ids), stop=layer + 1)
    place = torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])
    return states[place].float(), seen["mlp_out", layer][place].float()
