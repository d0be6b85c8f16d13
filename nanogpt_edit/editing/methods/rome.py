"""ROME (Meng et al. 2022): facts one after the other, each a rank-one change of one layer.

MEMIT with the keys of one fact at a time and λ → 0: ΔW K are the residuals exactly (eq. 2 for several keys),

    ΔW = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹        for one key: ΔW = r (C⁻¹k)ᵀ / (kᵀ C⁻¹ k)

The next fact is edited on the weights that this one left.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.covariance import factorise
from nanogpt_edit.editing.methods.memit import LayerSolver

RTOL = 1e-8  # keys that differ by less are one


class RomeSolver(LayerSolver):
    """The fact's own key counts, whatever the ordinary ones."""

    def __init__(self, covariance: Tensor, config: EditConfig) -> None:
        super().__init__(covariance, config)
        self.factor = factorise(covariance)

    def right(self, keys: Tensor, *, earlier: Tensor | None, other_keys: Callable[[], Tensor]) -> Tensor:
        return rome_right(keys, self.factor)


def rome_right(keys: Tensor, factor: Tensor) -> Tensor:
    """(Kᵀ C⁻¹ K)⁺ Kᵀ C⁻¹, (n, in), for one fact's `keys` (in, n) and `factor = factorise(C)`: ΔW K are the residuals
    exactly; where keys depend on each other, as nearly as can be.

    For a single key it is (C⁻¹k)ᵀ / (kᵀ C⁻¹ k).
    """
    spread = torch.cholesky_solve(keys, factor)  # C⁻¹ K (in, n)
    return torch.linalg.pinv(keys.T @ spread, rtol=RTOL, hermitian=True) @ spread.T
