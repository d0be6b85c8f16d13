"""The baseline: constrained fine-tuning of one MLP matrix (FT-L; Zhu et al. 2020, as in Meng et al. 2022).

Adam on W of the last edited layer, minimising the facts' mean NLL per target token, with every entry of ΔW held within
± `norm_constraint`. All facts in one batch; the blocks below are run once.

Shapes: N facts, T tokens of the longest text, J of the longest target, D model width, F MLP width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nanogpt_edit.common.terminal import progress
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, pad_rows
from nanogpt_edit.editing.methods.memit import EditedLayer
from nanogpt_edit.editing.values import TargetValues
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of


def finetune(model: GPT, facts: Sequence[LocatedFact], config: EditConfig, edited: EditedLayer) -> TargetValues:
    """Leave ΔW in the model and in `edited`, as I · ΔW; there are no values, and no keys, of single facts."""
    nll_of = _nll(model, facts, layer=config.edited_layers[0])
    weight, original = edited.weight, edited.original
    delta = torch.zeros_like(original, dtype=torch.float32)  # (D, F)
    adam, bound = torch.optim.Adam([delta], lr=config.ft_learning_rate), config.norm_constraint
    trained, taken = weight.requires_grad, 0
    weight.requires_grad_()
    try:
        with progress("fine-tuning", config.steps) as bar, torch.enable_grad():
            for taken in range(1, config.steps + 1):
                nll = nll_of()
                if taken == config.steps or bool(((-nll).exp() >= config.stop_probability).all()):
                    break
                (delta.grad,) = torch.autograd.grad(nll.mean(), weight)
                adam.step()
                with torch.no_grad():
                    weight.copy_(original + delta.clamp_(-bound, bound))
                bar.update(taken, loss=float(nll.detach().mean()))
            bar.update(config.steps, loss=float(nll.detach().mean()))
    finally:
        weight.requires_grad_(trained)
    n, d = len(facts), len(delta)
    edited.add(torch.eye(d, dtype=torch.float64), delta.double().cpu(), torch.zeros(delta.shape[1], n))
    return TargetValues(
        values=torch.zeros(n, d),
        probabilities=tuple((-nll).exp().tolist()),
        shifts=(0.0,) * n,
        steps=(taken,) * n,
    )


def _nll(model: GPT, facts: Sequence[LocatedFact], *, layer: int) -> Callable[[], Tensor]:
    """What gives (N,) nats per target token after each bare prompt, as the model is then; `layer` is the lowest that
    changes."""
    pad_id, device = tokenizer_of(model).pad_id, model.device
    rows = [(*fact.contexts[0].token_ids, *fact.target_ids[:-1]) for fact in facts]
    token_ids = pad_rows(rows, pad_id=pad_id, device=device)  # (N, T)
    targets = pad_rows([fact.target_ids for fact in facts], pad_id=pad_id, device=device)  # (N, J)
    lengths = torch.tensor([len(fact.target_ids) for fact in facts], device=device)
    steps = torch.arange(targets.shape[1], device=device)
    is_target = steps < lengths[:, None]
    ends = torch.tensor([len(fact.contexts[0].token_ids) - 1 for fact in facts], device=device)
    read = (ends[:, None] + steps).clamp_max(token_ids.shape[1] - 1)[..., None]  # (N, J, 1)
    with torch.no_grad():
        below = model.run_blocks(model.embed_tokens(token_ids), stop=layer)  # (N, T, D)

    def nll() -> Tensor:
        states = model.run_blocks(below, start=layer).gather(1, read.expand(-1, -1, below.shape[2]))
        logprobs = model.logits(model.final(states)).float().log_softmax(-1)
        return -(logprobs.gather(-1, targets[..., None]).squeeze(-1) * is_target).sum(-1) / lengths

    return nll
