"""The linear algebra of MEMIT, ROME and AlphaEdit: pure functions of float64 matrices.

All three find the smallest change of a weight W (out, in) that adds the residuals R (out, n) at the keys K (in, n),
where "small" is measured on the keys the model usually sees, C = E[k kᵀ] (in, in):

    ΔW = argmin ‖ΔW K − R‖² + tr(ΔW A ΔWᵀ) = R Kᵀ (A + K Kᵀ)⁻¹

MEMIT (Meng et al. 2023, eq. 14): A = λ C. ROME (Meng et al. 2022, eq. 2) is its limit for one key and λ → 0:
ΔW = r (C⁻¹k)ᵀ / (kᵀ C⁻¹ k). AlphaEdit (Fang et al. 2025, eq. 12) first projects the keys on the null space of C,
K̃ = P K, and takes A = λ I + K̃ₚ K̃ₚᵀ with the projected keys of earlier edits; keys outside the null space then have
exactly the outputs they had.

ΔW always has the form left · right with left = R, so only the right factor (n, in) is computed here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanogpt_edit.common.errors import UserError

RIDGES = (1e-8, 1e-6, 1e-4)  # of C's mean eigenvalue, the first that is enough


def memit_right(keys: Tensor, factor: Tensor, *, covariance_weight: float) -> Tensor:
    """Kᵀ (λ C + K Kᵀ)⁻¹, (n, in), for `keys` (in, n) and `factor = factorise(C)`, float64.

    `covariance_weight` λ: how many times the usual keys count against each edited one; λ → ∞ changes nothing. Computed
    as (λ I + Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹, which is the same, needs C's factor only, and stays exact as λ → 0.
    """
    spread = torch.cholesky_solve(keys, factor)  # C⁻¹ K (in, n)
    identity = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    return torch.linalg.solve(covariance_weight * identity + keys.T @ spread, spread.T)


def rome_right(key: Tensor, factor: Tensor) -> Tensor:
    """(C⁻¹k)ᵀ / (kᵀ C⁻¹ k), (1, in), for a `key` (in, 1) and `factor = factorise(C)`: ΔW k is the residual exactly."""
    if key.shape[1] != 1:
        raise ValueError(f"ROME changes one fact at a time, got {key.shape[1]} keys")
    return memit_right(key, factor, covariance_weight=0.0)


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


def drop_keys(right: Tensor, keys: Tensor, dropped: list[int]) -> Tensor:
    """The right factor as it would be without some of the keys: (n, in) -> (n − d, in).

    Sherman–Morrison–Woodbury on right = Kᵀ B⁻¹, where B = A + K Kᵀ: with d the dropped and s the staying columns,
    (B − K_d K_dᵀ)⁻¹ = B⁻¹ + B⁻¹ K_d (I − K_dᵀ B⁻¹ K_d)⁻¹ K_dᵀ B⁻¹, so A itself is not needed.
    """
    staying = [i for i in range(len(right)) if i not in set(dropped)]
    overlap = right[dropped] @ keys[:, dropped]  # (d, d)
    identity = torch.eye(len(dropped), dtype=right.dtype, device=right.device)
    spread = right[staying] @ keys[:, dropped]  # (s, d)
    return right[staying] + spread @ torch.linalg.solve(identity - overlap, right[dropped])


def factorise(covariance: Tensor) -> Tensor:
    """Cholesky factor of C with a ridge on its diagonal.

    The ridge gives a value to directions that no key of the text has (units of a ReLU that never fire, or fewer tokens
    than dimensions); others it moves by less than the covariance's own error. Where such directions have come out below
    zero, for the sum is made of float32 products, it is a larger one. Raises UserError where none is enough.
    """
    mean = covariance.trace() / len(covariance)
    if mean <= 0:
        raise UserError("the covariance is zero: the text gave no keys. Give more covariance text.")
    for ridge in RIDGES:
        ridged = covariance.clone()
        ridged.diagonal().add_(ridge * mean)
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if not bool(failed):
            return factor
    raise UserError(
        f"the covariance of {len(covariance)} dimensions cannot be factorised: the text gave too few different keys, "
        "or some that are not finite. Give more covariance text, or check the model's weights."
    )
