"""LoRA (Hu et al. 2022) on all linear layers, as a baseline: what is not an editor at all.

The facts are learned like any text, in mini-batches over epochs (`locft.py`), by adapters of rank `lora_rank` on every
linear layer of every block (`model/lora.py`). ΔW = s B A is kept in the patch as it is, for every matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact
from nanogpt_edit.editing.methods.answers import Answers, no_values
from nanogpt_edit.editing.methods.locft import learn_in_epochs, nll_in_batches
from nanogpt_edit.editing.methods.memit import EditedLayer
from nanogpt_edit.editing.patch import down_name
from nanogpt_edit.editing.values import TargetValues
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lora import Lora


def lora(
    model: GPT, facts: Sequence[LocatedFact], config: EditConfig, edited: Mapping[int, EditedLayer]
) -> list[TargetValues]:
    """Leave the factors of ΔW in `edited`, the model as it is; there are no values, and no keys, of single facts."""
    answers = Answers.of(model, facts, layer=0)
    adapters = Lora(model, rank=config.lora_rank, seed=config.seed)
    with adapters.attached(model):
        with torch.enable_grad():
            epochs = learn_in_epochs(model, answers, list(adapters.parameters()), config)
        nll = nll_in_batches(model, answers, config)
    factors = {name: (left.double(), right.double()) for name, (left, right) in adapters.factors().items()}
    for layer, matrix in edited.items():
        left, right = factors.pop(down_name(layer))
        matrix.add(left, right, torch.zeros(right.shape[1], 0))
        matrix.beside |= {name: both for name, both in factors.items() if name.startswith(f"blocks.{layer}.")}
    return [no_values(nll, steps=epochs, width=model.config.n_embd)]
