"""Values written into the weights, layer by layer (MEMIT's algorithm 1; the algebra is in `solve.py`).

For every edited layer in turn, keys and the present state h are taken with the earlier layers already changed, the
residual v* − h is divided by the number of layers left, and the layer's ΔW is solved for. The changes are made on the
model itself, because later layers must see them.

Shapes: N facts, T tokens of a chunk's texts up to their subjects' last, D model width, F MLP width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.common.terminal import progress
from nanogpt_edit.editing import solve
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, in_chunks, pad_rows
from nanogpt_edit.editing.covariance import Covariance
from nanogpt_edit.editing.long_row import Layout
from nanogpt_edit.editing.patch import edited_weight
from nanogpt_edit.editing.refine import OrdinaryText, Update, refine_residuals
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.sites import capture
from nanogpt_edit.model.tokenizer import tokenizer_of

CHUNK_TOKENS = 16_384  # tokens run at once; more cost no more memory than their states (T, D)


@dataclass(frozen=True)
class Terrain:
    """What a layer's solver needs of its covariance, in the form the method wants; float64."""

    covariance: Tensor  # C
    factor: Tensor | None = None  # memit, rome: of C
    projector: Tensor | None = None  # alphaedit: on C's null space

    @classmethod
    def of(cls, covariance: Covariance, config: EditConfig, device: torch.device) -> Terrain:
        matrix = covariance.matrix.to("cpu" if device.type == "mps" else device)
        if config.method == "alphaedit":
            return cls(matrix, projector=solve.null_space_projector(matrix, null_share=config.null_share))
        return cls(matrix, factor=solve.factorise(matrix))

    def right(self, keys: Tensor, others: Tensor | None, config: EditConfig, earlier_keys: Tensor | None) -> Tensor:
        """The right factor (N, F) of this batch's ΔW, for `keys` (F, N).

        `others` (F, F), the summed k kᵀ of the prompts' other tokens, joins MEMIT's λ C with `context_weight`.
        """
        if self.projector is not None:
            ridge = config.ridge * float(self.covariance.trace())
            return solve.alphaedit_right(keys, self.projector, ridge=ridge, earlier_keys=earlier_keys)
        assert self.factor is not None
        if config.method == "rome":
            return solve.rome_right(keys, self.factor)
        factor = self.factor
        if others is not None:
            factor = solve.factorise(self.covariance + config.context_weight / config.covariance_weight * others)
        return solve.memit_right(keys, factor, covariance_weight=config.covariance_weight)


class EditedLayer:
    """One layer while it is edited: its weight as it was, its terrain, and ΔW so far, batch by batch; float64."""

    def __init__(self, model: GPT, layer: int) -> None:
        self.weight = edited_weight(model, layer)
        self.original = self.weight.detach().clone()
        self.terrain: Terrain | None = None  # ft has none
        self.left: list[Tensor] = []  # (D, n)
        self.right: list[Tensor] = []  # (n, F)
        self.keys: list[Tensor] = []  # (F, n)

    def add(self, left: Tensor, right: Tensor, keys: Tensor) -> None:
        """The factors and the keys of a batch."""
        self.left.append(left)
        self.right.append(right)
        self.keys.append(keys)

    def earlier_keys(self) -> Tensor | None:
        return torch.cat(self.keys, dim=1) if self.keys else None

    @torch.no_grad()
    def write(self) -> None:
        """Leave ΔW in the model."""
        delta = torch.cat(self.left, dim=1) @ torch.cat(self.right, dim=0)
        self.weight.copy_(_double(self.original) + delta)

    @torch.no_grad()
    def restore(self) -> None:
        self.weight.copy_(self.original)


@progress("solving")
@torch.no_grad()
def solve_batch(
    model: GPT,
    facts: Sequence[LocatedFact],
    values: Tensor,
    config: EditConfig,
    edited: Mapping[int, EditedLayer],
    *,
    again: bool = False,
) -> None:
    """Solve for all layers in turn, for `values` v* (N, D), and leave the batch's changes in the model.

    `again`: a further round of the same batch. The keys and the right factors stay, what is still missing of the (new)
    values is added to the left ones.
    """
    layers = config.edited_layers
    asked = [_Subjects(model, chunk, layers[0]) for chunk in in_chunks(facts, CHUNK_TOKENS)]
    for index, layer in enumerate(layers):
        found = [part.advance_to(model, layer, last_layer=layers[-1]) for part in asked]
        mean_key, h = (torch.cat(each) for each in zip(*found, strict=True))  # (N, F), (N, D)
        residual = ((values.to(h) - h) / (len(layers) - index)).T  # (D, N)
        if again:
            edited[layer].left[-1] += residual
        else:
            terrain, earlier = edited[layer].terrain, edited[layer].earlier_keys()
            assert terrain is not None
            others = _other_keys(model, facts, layer) if config.context_weight > 0 else None
            edited[layer].add(residual, terrain.right(mean_key.T, others, config, earlier), mean_key.T)
        edited[layer].write()


class _Subjects:
    """Some facts' texts up to their subjects' last tokens, run up to the layer that is solved for next.

    Only their residual stream is kept. An edited block is run twice: to its keys, and with its new weight.
    """

    def __init__(self, model: GPT, facts: Sequence[LocatedFact], layer: int) -> None:
        self.contexts = len(facts[0].contexts)
        texts = [row.token_ids[: row.subject_last + 1] for fact in facts for row in fact.contexts]
        self.row = Layout.of(texts, device=model.device)
        self.bare = Layout.of(texts[:: self.contexts], device=model.device)  # only these go up to the last layer
        self.is_bare = self.bare.within(self.row, range(0, len(texts), self.contexts))
        self.last, self.last_bare = (
            torch.stack([place[-1] for place in each.places]) for each in (self.row, self.bare)
        )
        embedded = model.embed_tokens(self.row.token_ids, self.row.positions)
        self.x, self.layer = _run(model, embedded, self.row, 0, layer), layer  # (1, T, D)

    def advance_to(self, model: GPT, layer: int, *, last_layer: int) -> tuple[Tensor, Tensor]:
        """The facts' keys at `layer`, averaged over contexts, (N, F), and their states at the last layer, (N, D);
        float64.

        Layers come in ascending order, each with the weights of those below it final.
        """
        self.x, self.layer = _run(model, self.x, self.row, self.layer, layer), layer
        middle, key = model.run_to_key(self.x, layer, view=self.row.cache(), position_ids=self.row.positions)
        mean_key = _double(key[0, self.last]).unflatten(0, (-1, self.contexts)).mean(1)
        top = model.run_from_key(middle[:, self.is_bare], key[:, self.is_bare], layer)
        top = _run(model, top, self.bare, layer + 1, last_layer + 1)
        return mean_key, _double(top[0, self.last_bare])


def refine_batch(
    model: GPT,
    facts: Sequence[LocatedFact],
    config: EditConfig,
    edited: Mapping[int, EditedLayer],
    text: OrdinaryText | None,
) -> None:
    """Descend on the residuals of the batch just solved (see `refine`), and leave the better ones in the model."""
    updates = {}
    for layer, each in edited.items():
        assert each.terrain is not None
        updates[layer] = Update(each.left[-1], each.right[-1], each.keys[-1], each.terrain.covariance)
    for layer, left in refine_residuals(model, facts, updates, config, text).items():
        edited[layer].left[-1] = left
        edited[layer].write()


def _run(model: GPT, x: Tensor, row: Layout, start: int, stop: int) -> Tensor:
    return model.run_blocks(x, start=start, stop=stop, view=row.cache(), position_ids=row.positions)


def _other_keys(model: GPT, facts: Sequence[LocatedFact], layer: int) -> Tensor:
    """Σ k kᵀ (F, F), float64, over the tokens of the facts' texts and targets but the subjects' last; per context.

    The residuals are written where the subject ends. What they do at the other tokens of the same text is a side
    effect, and the one that hurts the edit itself most.
    """
    texts = [(*row.token_ids, *fact.target_ids[:-1]) for fact in facts for row in fact.contexts]
    token_ids = pad_rows(texts, pad_id=tokenizer_of(model).pad_id, device=model.device)
    is_other = torch.zeros(token_ids.shape, dtype=torch.bool, device=model.device)
    for i, (text, row) in enumerate(zip(texts, (row for fact in facts for row in fact.contexts), strict=True)):
        is_other[i, : len(text)] = True
        is_other[i, row.subject_last] = False
    total = torch.zeros(model.config.mlp_size, model.config.mlp_size, dtype=torch.float64)
    chunk = max(1, CHUNK_TOKENS // token_ids.shape[1])
    with capture(model, [("mlp_key", layer)]) as seen:
        for part, other in zip(token_ids.split(chunk), is_other.split(chunk), strict=True):
            model.run_blocks(model.embed_tokens(part), stop=layer + 1)
            keys = _double(seen["mlp_key", layer][other])
            total = total.to(keys.device) + keys.T @ keys
    return total / len(facts[0].contexts)


def _double(tensor: Tensor) -> Tensor:
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
