"""The baseline: constrained fine-tuning of one MLP matrix (FT-L; Zhu et al. 2020, as in Meng et al. 2022).

Adam on W of the last edited layer, minimising the facts' mean NLL per target token, with every entry of ΔW held within
± `norm_constraint`. All facts in one batch; the blocks below are run once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nanogpt_edit.common.terminal import progress
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, pad_rows
from nanogpt_edit.editing.patch import edited_weight
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of


def finetuned_delta(
    model: GPT, facts: Sequence[LocatedFact], config: EditConfig
) -> tuple[Tensor, tuple[float, ...], int]:
    """ΔW (D, F), each fact's probability per target token at the end, and the steps taken.

    The caller gives the weight its original value back.
    """
    layer = config.edited_layers[0]
    weight = edited_weight(model, layer)
    original = weight.detach().clone()
    pad_id, device = tokenizer_of(model).pad_id, model.device
    rows = [(*fact.contexts[0].token_ids, *fact.target_ids[:-1]) for fact in facts]
    token_ids = pad_rows(rows, pad_id=pad_id, device=device)
    targets = pad_rows([fact.target_ids for fact in facts], pad_id=pad_id, device=device)  # (N, J)
    lengths = torch.tensor([len(fact.target_ids) for fact in facts], device=device)
    steps = torch.arange(targets.shape[1], device=device)
    mask = steps < lengths[:, None]
    ends = torch.tensor([len(fact.contexts[0].token_ids) - 1 for fact in facts], device=device)
    at = (ends[:, None] + steps).clamp_max(token_ids.shape[1] - 1)
    with torch.no_grad():
        x = model.run_blocks(model.embed_tokens(token_ids), stop=layer)
    delta = torch.zeros_like(original, dtype=torch.float32)
    first, second = torch.zeros_like(delta), torch.zeros_like(delta)
    taken = 0
    trained = weight.requires_grad
    weight.requires_grad_()
    with progress("fine-tuning", config.steps) as bar, torch.enable_grad():
        for taken in range(1, config.steps + 1):
            states = model.run_blocks(x, start=layer).gather(1, at[..., None].expand(-1, -1, x.shape[2]))
            logprobs = model.logits(model.final(states)).float().log_softmax(-1)
            nll = -(logprobs.gather(-1, targets[..., None]).squeeze(-1) * mask).sum(-1) / lengths
            if taken == config.steps or bool(((-nll).exp() >= config.stop_probability).all()):
                break
            (slope,) = torch.autograd.grad(nll.mean(), weight)
            with torch.no_grad():
                first.mul_(0.9).add_(slope, alpha=0.1)
                second.mul_(0.999).addcmul_(slope, slope, value=0.001)
                stride = (first / (1 - 0.9**taken)) / ((second / (1 - 0.999**taken)).sqrt() + 1e-8)
                delta = (delta - config.ft_learning_rate * stride).clamp(
                    -config.norm_constraint, config.norm_constraint
                )
                weight.copy_(original + delta)
            bar.update(taken, loss=float(nll.detach().mean()))
        bar.update(config.steps, loss=float(nll.detach().mean()))
    weight.requires_grad_(trained)
    return delta, tuple((-nll).exp().tolist()), taken
