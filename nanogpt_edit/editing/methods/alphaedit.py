"""AlphaEdit (Fang et al. 2025): MEMIT in the null space of the ordinary keys.

The keys are first projected on the null space of C, K̃ = P K; keys outside of it then have exactly the outputs they had.
With the projected keys K̃ₚ of earlier edits, A = λ I + K̃ₚ K̃ₚᵀ (eq. 12).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.methods.memit import LayerSolver


class AlphaEditSolver(LayerSolver):
    """λ is `ridge` times an ordinary key's mean squared length, the trace of C."""

    def __init__(self, covariance: Tensor, config: EditConfig) -> None:
        super().__init__(covariance, config)
        self.projector = null_space_projector(covariance, null_share=config.null_share)
        self.energy = float(covariance.trace())

    def right(self, keys: Tensor, *, earlier: Tensor | None, other_keys: Callable[[], Tensor]) -> Tensor:
        return alphaedit_right(keys, self.projector, ridge=self.strength * self.energy, earlier_keys=earlier)


def alphaedit_right(keys: Tensor, projector: Tensor, *, ridge: float, earlier_keys: Tensor | None = None) -> Tensor:
    """K̃ᵀ (λ I + K̃ₚ K̃ₚᵀ + K̃ K̃ᵀ)⁻¹ P, (n, in), with K̃ = P K; `ridge` is λ, `earlier_keys` (in, m) those of Kₚ."""
    seen = projector @ (keys if earlier_keys is None else torch.cat((earlier_keys, keys), dim=1))
    inner = ridge * torch.eye(len(keys), dtype=keys.dtype, device=keys.device) + seen @ seen.T
    return torch.cholesky_solve(projector @ keys, torch.linalg.cholesky(inner)).T @ projector


def null_space_projector(covariance: Tensor, *, null_share: float) -> Tensor:
    """P (in, in): projects on the directions the usual keys hardly have.

    Those are C's smallest eigenvalues that together hold at most `null_share` of its trace. (Fang et al. cut at a fixed
    eigenvalue, which depends on the scale of the activations; a share does not.)
    """
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    values = values.clamp_min(0)
    total = values.sum()
    rounding = total * torch.finfo(values.dtype).eps * len(values)
    kept = values.cumsum(0) <= null_share * total + rounding
    basis = vectors[:, kept]
    return basis @ basis.T
