"""EditPatch: an edit as a thing of its own, that can be applied, undone, saved and refused.

Per edited layer ΔW = left · right. Both factors are stored in float32 on a fixed-point grid coarse enough that every
sum in their float64 product is exact (see `on_grid`): the edited weight is then the same, bit for bit, on every
machine, whatever order a matrix product adds in. W + ΔW − ΔW is still not always W, because the sum was rounded to the
weight's precision; the few entries that differ are stored with the patch (`undo`), so that a saved edited model gives
back the original exactly.

A patch knows the SHA-256 of each weight it expects and refuses any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.checkpoint.tensors import tensor_sha256
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.facts import Fact, Lookup
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.records import Tried
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import LineageEntry

LARGEST_CHANGE = 1e4  # ‖ΔW‖/‖W‖; edits that went wrong altogether have come to some tens
DOUBLE_BITS, SINGLE_BITS = 53, 24  # significant bits of float64 and float32


@dataclass(frozen=True)
class Undo:
    """What subtracting ΔW from an edited weight does not bring back by itself."""

    edited_sha256: str
    """Of the edited weight."""
    index: Tensor
    """(m,) int32, flat positions of the entries that come out wrong."""
    original: Tensor
    """(m,) their original values, in the weight's dtype."""


@dataclass(frozen=True)
class LayerUpdate:
    """One layer's ΔW = left · right, and the keys it was solved for. M columns, D model width, F MLP width."""

    left: Tensor
    """(D, M) float32 on the CPU, on a fixed-point grid: the residuals, those of a fact side by side."""
    right: Tensor
    """(M, F) the same."""
    keys: Tensor
    """(F, M) float32; (F, 0) of a method that solves for none."""
    expected_sha256: str
    """Of the weight before the edit."""
    covariance_sha256: str = ""
    undo: Undo | None = None

    def delta(self, device: torch.device | str = "cpu") -> Tensor:
        """ΔW (D, F) in float64, exact."""
        return self.left.to(device, torch.float64) @ self.right.to(device, torch.float64)

    def norm(self) -> float:
        """‖ΔW‖."""
        return product_norm(self.left, self.right)


@dataclass(frozen=True)
class EditedFact:
    """A fact in a patch, and how its value was found."""

    fact: Fact
    lookup: Lookup
    """How the subject was found in the prompt."""
    probability: float
    """Of the target's tokens (geometric mean over tokens and contexts) that the value optimisation reached."""
    shift: float
    """‖δ‖ / ‖h‖ of the value."""
    steps: int
    columns: int = 1
    """How many columns of every layer's factors and keys are this fact's."""


@dataclass(frozen=True)
class EditPatch:
    """An edit of some facts. `with patch.applied(model): …`, or `patch.apply(model)` and `patch.revert(model)`."""

    layers: Mapping[int, LayerUpdate]
    values: Tensor
    """v*, (N, D) float32, in each fact's first context."""
    edited: tuple[EditedFact, ...]
    config: EditConfig
    batches: tuple[int, ...]
    """Facts per solved batch, in order; they sum to N."""
    seconds: float = 0.0
    created: str = ""
    """UTC, ISO 8601."""
    versions: Mapping[str, str] = field(default_factory=dict)
    tried: tuple[Tried, ...] = ()
    """How settings that nobody gave were chosen."""
    scores: tuple[Mapping[str, object], ...] = ()
    """One record per fact, as `scores.py` writes them; empty until scored."""
    base_fingerprint: str = ""
    """Of all weights of the model it was bound to; empty where that was done by version 0.1.0."""
    beside: Mapping[str, LayerUpdate] = field(default_factory=dict)
    """The same of matrices that are no MLP's second, by their names in the model."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        return tuple(edited.fact for edited in self.edited)

    @property
    def matrices(self) -> dict[str, LayerUpdate]:
        """All that changes, by the names of the weights in the model."""
        return {down_name(layer): update for layer, update in self.layers.items()} | dict(self.beside)

    @contextmanager
    def applied(self, model: GPT) -> Iterator[GPT]:
        """The edited model inside `with`; bitwise the original afterwards, also after an exception."""
        self.check(model)
        originals = {name: model.get_parameter(name).detach().clone() for name in self.matrices}
        try:
            self._add(model)
            yield model
        finally:
            with torch.no_grad():
                for name, original in originals.items():
                    model.get_parameter(name).copy_(original)

    def apply(self, model: GPT) -> EditPatch:
        """Edit `model` for good; returns this patch with what `revert` needs. All layers change, or none."""
        bound = self.bound_to(model)
        bound._add(model)
        model.lineage = (*model.lineage, LineageEntry("edited", self.describe()))
        return bound

    def revert(self, model: GPT) -> None:
        """Give an edited model its original weights back, bit for bit.

        Raises UserError when the model is not the one this patch made, or the patch was never bound to its original.
        """
        originals: dict[str, Tensor] = {}
        for name, update in self.matrices.items():
            weight = _weight(model, name, update)
            if update.undo is None:
                raise UserError("this patch was never applied to its model and cannot be undone; apply it first.")
            if tensor_sha256(weight) != update.undo.edited_sha256:
                raise UserError(
                    f"{told(name)}'s weights are not the ones this patch left behind; nothing was reverted. "
                    "Revert later patches first, newest first."
                )
            originals[name] = subtract_delta(weight, update)
            if tensor_sha256(originals[name]) != update.expected_sha256:
                raise UserError(f"{told(name)} would not come back exactly; the patch is damaged. Nothing was changed.")
        with torch.no_grad():
            for name, original in originals.items():
                model.get_parameter(name).copy_(original)

    def bound_to(self, model: GPT) -> EditPatch:
        """The same patch with its `undo` and `base_fingerprint` computed from the original model."""
        self.check(model)
        bound = {
            name: replace(update, undo=_undo(model.get_parameter(name), update))
            for name, update in self.matrices.items()
        }
        return replace(
            self,
            layers={layer: bound[down_name(layer)] for layer in self.layers},
            beside={name: bound[name] for name in self.beside},
            base_fingerprint=fingerprint(model),
        )

    def made_of(self) -> dict[str, tuple[str, str]]:
        """The hashes of each weight before and after (empty: never bound): equal for one and the same edit."""
        return {
            name: (update.expected_sha256, "" if update.undo is None else update.undo.edited_sha256)
            for name, update in self.matrices.items()
        }

    def check(self, model: GPT) -> None:
        """Raise UserError unless `model`'s weights are exactly the ones this patch was made for."""
        for layer in self.layers:
            if layer >= model.config.n_layer:
                raise UserError(
                    f"the patch edits layer {layer}, the model has only {model.config.n_layer}: another model's patch."
                )
        weights = {name: _weight(model, name, update) for name, update in self.matrices.items()}
        for name, update in self.matrices.items():
            digest = tensor_sha256(weights[name])
            if digest == update.expected_sha256:
                _check_size(name, update, weights[name])
                continue
            if update.undo is not None and digest == update.undo.edited_sha256:
                raise UserError("the patch is already applied to this model; there is nothing to do.")
            raise UserError(
                f"the patch was made for other weights: {told(name)} has SHA-256 {digest[:12]}…, expected "
                f"{update.expected_sha256[:12]}…. Use the model it was made on, or `patch apply --rebase`."
            )

    def describe(self) -> str:
        """One line for lineages and listings."""
        layers = ", ".join(str(layer) for layer in self.layers)
        count = len(self.edited)
        return f"{self.config.method} edit of {count} fact{'s' if count != 1 else ''}, layers {layers}"

    def _add(self, model: GPT) -> None:
        with torch.no_grad():
            for name, update in self.matrices.items():
                weight = model.get_parameter(name)
                weight.copy_(add_delta(weight, update))


def _weight(model: GPT, name: str, update: LayerUpdate) -> nn.Parameter:
    """The weight that `update` is for. Raises UserError where the model has none of that name and size."""
    try:
        weight = model.get_parameter(name)
    except AttributeError:
        raise UserError(
            f"the patch changes {told(name)}, which the model does not have: another model's patch."
        ) from None
    shape = (update.left.shape[0], update.right.shape[1])
    if tuple(weight.shape) != shape:
        raise UserError(
            f"the patch changes a {shape[0]} × {shape[1]} matrix in {told(name)}, the model's is "
            f"{weight.shape[0]} × {weight.shape[1]}: another model's patch."
        )
    return weight


def told(name: str) -> str:
    """A weight as a person knows it: `layer 3`, or `blocks.3.attn.qkv`."""
    _, layer, part = name.removesuffix(".weight").split(".", 2)
    return f"layer {layer}" if part == "mlp.down" else name.removesuffix(".weight")


def _check_size(name: str, update: LayerUpdate, weight: Tensor) -> None:
    """Raise UserError for a change that is out of all proportion to the weight, as only a forger writes it."""
    change, own = update.norm(), float(weight.detach().double().norm())
    if not change <= LARGEST_CHANGE * (own + 1):
        raise UserError(
            f"the patch changes {told(name)} by ‖ΔW‖ = {change:.3g}, and the weight's own norm is {own:.3g}; no edit "
            "does that. Make it again."
        )


def edited_weight(model: GPT, layer: int) -> nn.Parameter:
    """The matrix an edit changes: the MLP's second, (D, F)."""
    weight = model.get_parameter(down_name(layer))
    return weight


def down_name(layer: int) -> str:
    """What the model calls the second matrix of a block's MLP."""
    return f"blocks.{layer}.mlp.down.weight"


def add_delta(weight: Tensor, update: LayerUpdate) -> Tensor:
    """W + ΔW: added in float64, rounded once to the weight's dtype."""
    device = _double_device(weight)
    return (weight.detach().to(device, torch.float64) + update.delta(device)).to(weight.dtype).to(weight.device)


def subtract_delta(weight: Tensor, update: LayerUpdate) -> Tensor:
    """W from W + ΔW, with `undo`'s corrections."""
    device = _double_device(weight)
    original = (weight.detach().to(device, torch.float64) - update.delta(device)).to(weight.dtype)
    if update.undo is not None:
        original.view(-1)[update.undo.index.to(device, torch.long)] = update.undo.original.to(device)
    return original.to(weight.device)


def on_grid(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """`left` (D, N) and `right` (N, F), float64, rounded to float32 numbers whose float64 product is exact.

    Each factor becomes integers of b bits times a power of two. A product has 2b bits, a sum of N of them at most
    2b + log2 N: exact while that is no more than float64's 53. For 50 facts b = 23, a relative error near 1e-7.
    """
    bits = min(SINGLE_BITS, (DOUBLE_BITS - math.ceil(math.log2(max(left.shape[1], 1)))) // 2)
    return _round_to_bits(left, bits), _round_to_bits(right, bits)


def product_norm(left: Tensor, right: Tensor) -> float:
    """‖left · right‖ for (D, N) and (N, F), without the product: tr(LᵀL · RRᵀ) where N is the smaller size."""
    left, right = left.double(), right.double()
    if left.shape[1] > min(left.shape[0], right.shape[1]):
        return float((left @ right).norm())
    return float(((left.T @ left) * (right @ right.T)).sum().clamp_min(0).sqrt())


def _round_to_bits(matrix: Tensor, bits: int) -> Tensor:
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    if largest == 0.0:
        return matrix.float()
    step = 2.0 ** (math.frexp(largest)[1] - bits)
    return ((matrix / step).round() * step).float()


def _undo(weight: Tensor, update: LayerUpdate) -> Undo:
    edited = add_delta(weight, update)
    back = subtract_delta(edited, replace(update, undo=None)).cpu()
    original = weight.detach().cpu()
    wrong = _bits(back).ne(_bits(original)).view(-1).nonzero().squeeze(1)
    return Undo(
        edited_sha256=tensor_sha256(edited), index=wrong.to(torch.int32), original=original.reshape(-1)[wrong].clone()
    )


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bit patterns as integers, so that −0 and 0 differ."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])


def _double_device(weight: Tensor) -> torch.device:
    """Where float64 arithmetic is done: Apple's GPUs have none."""
    return torch.device("cpu") if weight.device.type == "mps" else weight.device
