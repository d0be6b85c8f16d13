"""ROME (Meng et al. 2022): facts one after the other, each a rank-one change of one layer.

MEMIT with one key at a time and λ → 0: ΔW k is the residual exactly (eq. 2),

    ΔW = r (C⁻¹k)ᵀ / (kᵀ C⁻¹ k)

The next fact is edited on the weights that this one left.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.covariance import factorise
from nanogpt_edit.editing.methods.memit import LayerSolver, memit_right


class RomeSolver(LayerSolver):
    """The fact's own key counts, whatever the ordinary ones."""

    def __init__(self, covariance: Tensor, config: EditConfig) -> None:
        super().__init__(covariance, config)
        self.factor = factorise(covariance)

    def right(self, keys: Tensor, *, earlier: Tensor | None, other_keys: Callable[[], Tensor]) -> Tensor:
        return rome_right(keys, self.factor)


def rome_right(key: Tensor, factor: Tensor) -> Tensor:
    """(C⁻¹k)ᵀ / (kᵀ C⁻¹ k), (1, in), for a `key` (in, 1) and `factor = factorise(C)`: ΔW k is the residual exactly."""
    if key.shape[1] != 1:
        raise ValueError(f"ROME changes one fact at a time, got {key.shape[1]} keys")
    return memit_right(key, factor, covariance_weight=0.0)
