"""Weights that do not learn: no slopes are taken for them, and what slopes would need is not kept.

All of a model while facts are written into it or a LoRA learns; or some parts while the others learn, such as matrices
that edits have written into.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from nanogpt_edit.common.errors import UserError, did_you_mean


def freeze(weights: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """From here on none of the weights has slopes; those that had, for `thaw`."""
    learning = [weight for weight in weights if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    return learning


def thaw(weights: Iterable[nn.Parameter]) -> None:
    """They have slopes again."""
    for weight in weights:
        weight.requires_grad_()


def weights_under(model: nn.Module, parts: Sequence[str] | None) -> list[nn.Parameter]:
    """The weights whose names are, or lie under, `parts`: blocks.0 is all of a block, blocks.0.mlp.down its matrix and
    bias; none for None. Raises UserError for a part that the model does not have, and where nothing else is left."""
    weights, parts = dict(model.named_parameters()), parts or ()
    for part in parts:
        if not any(f"{name}.".startswith(f"{part}.") for name in weights):
            parts_of_all = ", ".join(dict.fromkeys(name.partition(".")[0] for name in weights))
            names = sorted({name[:at] for name in weights for at, sign in enumerate(f"{name}.") if sign == "."})
            raise UserError(
                f"names {part!r}, which the model does not have{did_you_mean(part, names)} Its parts are "
                f"{parts_of_all}, and what lies in them; a head that is tied to the embedding is called embed.",
                field="frozen",
            )
    found = [weight for name, weight in weights.items() if any(f"{name}.".startswith(f"{part}.") for part in parts)]
    if len(found) == len(weights):
        raise UserError("names all of the model, so that nothing would learn; leave something out.", field="frozen")
    return found
