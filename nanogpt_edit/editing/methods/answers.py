"""How likely the new answers are after their bare prompts, for the methods that take slopes of the weights.

The blocks below the lowest layer that changes are run once.

Shapes: N facts, T tokens of the longest text, J of the longest target, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.editing.contexts import LocatedFact, pad_rows
from nanogpt_edit.editing.values import TargetValues
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of


@dataclass(frozen=True)
class Answers:
    """The bare prompts with the new answers behind them, right padded."""

    below: Tensor
    """(N, T, D) entering block `layer`."""
    layer: int
    """The lowest that changes."""
    targets: Tensor
    """(N, J) the answers' tokens."""
    lengths: Tensor
    """(N,) how many of them are an answer's."""
    read: Tensor
    """(N, J) the places that predict them."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: GPT, facts: Sequence[LocatedFact], *, layer: int) -> Answers:
        pad_id, device = tokenizer_of(model).pad_id, model.device
        rows = [(*fact.bare.token_ids, *fact.target_ids[:-1]) for fact in facts]
        token_ids = pad_rows(rows, pad_id=pad_id, device=device)
        targets = pad_rows([fact.target_ids for fact in facts], pad_id=pad_id, device=device)
        ends = torch.tensor([len(fact.bare.token_ids) - 1 for fact in facts], device=device)
        places = ends[:, None] + torch.arange(targets.shape[1], device=device)
        return cls(
            below=model.run_blocks(model.embed_tokens(token_ids), stop=layer),
            layer=layer,
            targets=targets,
            lengths=torch.tensor([len(fact.target_ids) for fact in facts], device=device),
            read=places.clamp_max(token_ids.shape[1] - 1),
        )

    @property
    def is_target(self) -> Tensor:
        """(N, J)."""
        return torch.arange(self.targets.shape[1], device=self.lengths.device) < self.lengths[:, None]

    def part(self, rows: Tensor) -> Answers:
        """Those of some facts."""
        return Answers(self.below[rows], self.layer, self.targets[rows], self.lengths[rows], self.read[rows])

    def nll(self, model: GPT) -> Tensor:
        """(N,) nats per target token, as the model is now."""
        top = model.run_blocks(self.below, start=self.layer)
        states = top.gather(1, self.read[..., None].expand(-1, -1, top.shape[2]))  # (N, J, D)
        logprobs = model.logits(model.final(states)).float().log_softmax(-1)
        chosen = logprobs.gather(-1, self.targets[..., None]).squeeze(-1)
        return -(chosen * self.is_target).sum(-1) / self.lengths


def no_values(nll: Tensor, *, steps: int, width: int) -> TargetValues:
    """What is known of facts for which no value was found: `nll` (N,) of their answers at the end."""
    n = len(nll)
    return TargetValues(
        values=torch.zeros(n, width),
        probabilities=tuple((-nll.detach()).exp().tolist()),
        shifts=(0.0,) * n,
        steps=(steps,) * n,
    )
