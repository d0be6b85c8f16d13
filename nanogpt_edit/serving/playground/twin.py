"""A second model on the same tensors: what is hooked into it, or changed in its own matrices, the first never feels."""

from __future__ import annotations

from collections.abc import Collection

import torch

from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.patch import down_name
from nanogpt_edit.model.gpt import GPT


def twin(model: GPT, *, own: Collection[str] = ()) -> GPT:
    """`model` once more, without a copy of its tensors, but for those whose names are in `own`."""
    tensors = {name: tensor.clone() if name in own else tensor for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        other = GPT(model.config)
    other.load_state_dict(tensors, assign=True)
    other.requires_grad_(False)
    other.tokenizer, other.kept = model.tokenizer, model.kept
    other.lineage, other.source = model.lineage, model.source
    return other.eval()


def changed_by(config: EditConfig, model: GPT) -> set[str]:
    """The names of the tensors that an edit may change while it is being found."""
    if config.traits.whole_model:
        return set(model.state_dict())
    return {down_name(layer) for layer in range(model.config.n_layer)}
