"""EMMET (Gupta et al. 2024): every value of a batch met exactly, and ordinary keys disturbed as little as that allows.

MEMIT weighs the edit against ordinary text; here the edit is a constraint:

    min tr(ΔW C ΔWᵀ)  with  ΔW K = R        ΔW = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹

For the keys of one fact that is ROME. With many keys Kᵀ C⁻¹ K is nearly singular, so the authors add a multiple of the
identity, (Kᵀ C⁻¹ K + λ I)⁻¹ Kᵀ C⁻¹. By Woodbury's identity that is Kᵀ (λ C + K Kᵀ)⁻¹: MEMIT with that λ. So EMMET as it
is used is MEMIT with little protection, and where a larger λ is better, MEMIT is. (Their 0.1 for GPT-J, with C counted
10,000 times, is MEMIT's λ = 1,000; MEMIT's own there is 15,000.)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.covariance import factorise
from nanogpt_edit.editing.methods.memit import LayerSolver, memit_right


class EmmetSolver(LayerSolver):
    """λ is `emmet_ridge` times F, the mean of kᵀ C⁻¹ k over ordinary keys."""

    def __init__(self, covariance: Tensor, config: EditConfig) -> None:
        super().__init__(covariance, config)
        self.factor = factorise(covariance)

    def right(self, keys: Tensor, *, earlier: Tensor | None, other_keys: Callable[[], Tensor]) -> Tensor:
        return memit_right(keys, self.factor, covariance_weight=self.strength * len(keys))
