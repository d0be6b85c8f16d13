"""The baseline: constrained fine-tuning of one MLP matrix (FT-L; Zhu et al. 2020, as in Meng et al. 2022).

Adam on W of the last edited layer, minimising the facts' mean NLL per target token, with every entry of ΔW held within
± `norm_constraint`. All facts in one batch; the blocks below are run once.

Shapes: N facts, D model width, F MLP width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nanogpt_edit.common.terminal import progress
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact
from nanogpt_edit.editing.methods.answers import Answers, no_values
from nanogpt_edit.editing.methods.memit import EditedLayer
from nanogpt_edit.editing.values import TargetValues
from nanogpt_edit.model.gpt import GPT


def finetune(
    model: GPT, facts: Sequence[LocatedFact], config: EditConfig, edited: Mapping[int, EditedLayer]
) -> list[TargetValues]:
    """Leave ΔW in the model and in the one layer of `edited`; there are no values, and no keys, of single facts."""
    ((layer, matrix),) = edited.items()
    answers, weight = Answers.of(model, facts, layer=layer), matrix.weight
    delta = torch.zeros_like(matrix.original, dtype=torch.float32)  # (D, F)
    adam, bound, taken = torch.optim.Adam([delta], lr=config.ft_learning_rate), config.norm_constraint, 0
    with trained(weight), progress("fine-tuning", config.steps) as bar:
        for taken in range(1, config.steps + 1):
            nll = answers.nll(model)
            if taken == config.steps or bool(((-nll).exp() >= config.stop_probability).all()):
                break
            (delta.grad,) = torch.autograd.grad(nll.mean(), weight)
            adam.step()
            with torch.no_grad():
                weight.copy_(matrix.original + delta.clamp_(-bound, bound))
            bar.update(taken, loss=float(nll.detach().mean()))
        bar.update(config.steps, loss=float(nll.detach().mean()))
    add_whole(matrix, delta)
    return [no_values(nll, steps=taken, width=len(delta))]


@contextmanager
def trained(weight: nn.Parameter) -> Iterator[None]:
    """Inside: `weight` has slopes; afterwards it has them if it had them before."""
    before = weight.requires_grad
    weight.requires_grad_()
    try:
        with torch.enable_grad():
            yield
    finally:
        weight.requires_grad_(before)


def add_whole(matrix: EditedLayer, delta: Tensor) -> None:
    """ΔW (D, F) of any rank, as I · ΔW."""
    d, f = delta.shape
    matrix.add(torch.eye(d, dtype=torch.float64), delta.double().cpu(), torch.zeros(f, 0))
