"""The linear algebra of the edits against closed forms, limits and hand-worked numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from edit_world import facts
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, TokenRow
from nanogpt_edit.editing.covariance import RIDGES, factorise
from nanogpt_edit.editing.methods.alphaedit import alphaedit_right, null_space_projector
from nanogpt_edit.editing.methods.emmet import EmmetSolver
from nanogpt_edit.editing.methods.memit import mean_keys, memit_right, wanted_states
from nanogpt_edit.editing.methods.rome import rome_right
from nanogpt_edit.editing.methods.ultraedit import Moments, ridge_right, shifts
from nanogpt_edit.editing.patches import drop_keys


def random_problem(n: int = 5, width: int = 16, rows: int = 7, tokens: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Keys (F, n), residuals (D, n) and a covariance (F, F), float64."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(tokens, width, dtype=torch.float64, generator=generator)
    keys = torch.randn(width, n, dtype=torch.float64, generator=generator)
    residuals = torch.randn(rows, n, dtype=torch.float64, generator=generator)
    return keys, residuals, samples.T @ samples / tokens


def test_memit_equals_the_closed_form() -> None:
    keys, residuals, covariance = random_problem()
    delta = residuals @ memit_right(keys, factorise(covariance), covariance_weight=3.0)
    expected = residuals @ keys.T @ torch.linalg.inv(3.0 * covariance + keys @ keys.T)
    torch.testing.assert_close(delta, expected, rtol=1e-6, atol=1e-8)


def test_memit_minimises_its_objective() -> None:
    keys, residuals, covariance = random_problem()

    def cost(delta: Tensor) -> Tensor:
        return (delta @ keys - residuals).square().sum() + 3.0 * (delta @ covariance @ delta.T).trace()

    best = (residuals @ memit_right(keys, factorise(covariance), covariance_weight=3.0)).requires_grad_()
    (slope,) = torch.autograd.grad(cost(best), best)
    assert slope.abs().max() < 1e-5


def test_memit_worked_by_hand() -> None:
    """k = (1, 1), C = diag(1, 3), λ = 1: (λC + kkᵀ)⁻¹ = [[4, −1], [−1, 2]] / 7, so kᵀ(…)⁻¹ = (3, 1) / 7."""
    right = memit_right(
        torch.ones(2, 1, dtype=torch.float64),
        factorise(torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))),
        covariance_weight=1.0,
    )
    torch.testing.assert_close(right, torch.tensor([[3 / 7, 1 / 7]], dtype=torch.float64))


def test_infinite_covariance_weight_changes_nothing() -> None:
    keys, residuals, covariance = random_problem()
    weak = residuals @ memit_right(keys, factorise(covariance), covariance_weight=1e12)
    assert weak.abs().max() < 1e-9


def test_vanishing_covariance_weight_hits_every_value() -> None:
    keys, residuals, covariance = random_problem()
    delta = residuals @ memit_right(keys, factorise(covariance), covariance_weight=1e-9)
    torch.testing.assert_close(delta @ keys, residuals, rtol=1e-6, atol=1e-6)


def test_rome_is_the_rank_one_formula_and_memits_limit() -> None:
    keys, residuals, covariance = random_problem(n=1)
    right = rome_right(keys, factorise(covariance))
    solved = torch.linalg.inv(covariance) @ keys
    torch.testing.assert_close(right, solved.T / (keys.T @ solved), rtol=1e-6, atol=1e-8)
    delta = residuals @ right
    torch.testing.assert_close(delta @ keys, residuals, rtol=1e-6, atol=1e-8)
    assert torch.linalg.matrix_rank(delta) == 1
    torch.testing.assert_close(
        right, memit_right(keys, factorise(covariance), covariance_weight=1e-12), rtol=1e-9, atol=1e-12
    )


def test_rome_writes_every_residual_of_a_facts_contexts() -> None:
    """ΔW K = R exactly, and of all such ΔW the least on ordinary keys; a key that is there twice changes nothing."""
    keys, residuals, covariance = random_problem(n=3)
    delta = residuals @ rome_right(keys, factorise(covariance))
    torch.testing.assert_close(delta @ keys, residuals, rtol=1e-6, atol=1e-8)
    nothing_at_keys = torch.randn(7, 16, dtype=torch.float64) @ (
        torch.eye(16, dtype=torch.float64) - keys @ torch.linalg.pinv(keys)
    )
    crossed = (delta @ covariance @ nothing_at_keys.T).trace()
    assert abs(float(crossed)) < 1e-6 * float((nothing_at_keys @ covariance @ nothing_at_keys.T).trace())
    again = rome_right(torch.cat((keys, keys[:, :1]), dim=1), factorise(covariance))
    torch.testing.assert_close(torch.cat((residuals, residuals[:, :1]), dim=1) @ again, delta, rtol=1e-5, atol=1e-7)


def test_emmet_meets_every_value_with_the_least_disturbance() -> None:
    """Against the stationary point of min tr(ΔW C ΔWᵀ) with ΔW K = R, its Lagrange system solved as a whole."""
    keys, residuals, covariance = random_problem(n=4)
    solver = EmmetSolver(covariance, EditConfig(method="emmet", emmet_ridge=1e-12))
    delta = residuals @ solver.right(keys, earlier=None, other_keys=lambda: keys)
    zero = torch.zeros(4, 4, dtype=torch.float64)
    system = torch.cat((torch.cat((2 * covariance, keys), dim=1), torch.cat((keys.T, zero), dim=1)))
    sides = torch.cat((torch.zeros(16, 7, dtype=torch.float64), residuals.T))
    torch.testing.assert_close(delta, torch.linalg.solve(system, sides)[:16].T, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(delta @ keys, residuals, rtol=1e-6, atol=1e-8)


def test_emmet_with_its_authors_ridge_is_memit() -> None:
    """(Kᵀ (w C)⁻¹ K + λ I)⁻¹ Kᵀ (w C)⁻¹, as their code has it, is MEMIT's solution with λ w."""
    keys, _, covariance = random_problem()
    weighted = torch.linalg.inv(5.0 * covariance)
    theirs = torch.linalg.inv(keys.T @ weighted @ keys + 0.1 * torch.eye(5, dtype=torch.float64)) @ keys.T @ weighted
    torch.testing.assert_close(memit_right(keys, factorise(covariance), covariance_weight=0.5), theirs)
    ours = EmmetSolver(covariance, EditConfig(method="emmet", emmet_ridge=0.5 / 16))
    torch.testing.assert_close(ours.right(keys, earlier=None, other_keys=lambda: keys), theirs)


def test_ultraedits_shift_by_hand() -> None:
    """Three features of one key entry and two slope entries: mean (2, 0, 1), deviation (1, 2, 0).

    Normalised (−1, −1, 0), (0, 0, 0), (1, 1, 0); v = −η ‖ĥ‖² ĝ.
    """
    keys = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    slopes = torch.tensor([[-2.0, 1.0], [0.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
    seen = Moments()
    seen.add(torch.cat((keys, slopes), dim=1))
    assert shifts(keys, slopes, seen, rate=0.5).tolist() == [[0.5, 0.0], [0.0, 0.0], [-0.5, 0.0]]


def test_ultraedits_moments_are_those_of_all_rows() -> None:
    rows, seen = random_problem(tokens=30)[0].T, Moments()
    for part in rows.split(2):
        seen.add(part)
    torch.testing.assert_close(seen.normalise(rows), (rows - rows.mean(0)) / rows.std(0))


def test_ultraedits_solution_is_ridge_regression() -> None:
    """ΔWᵀ = (HHᵀ + I)⁻¹ H Vᵀ, as the authors' code solves it over the keys' width."""
    keys, values, _ = random_problem()
    expected = torch.linalg.solve(keys @ keys.T + torch.eye(16, dtype=torch.float64), keys @ values.T).T
    torch.testing.assert_close(values @ ridge_right(keys), expected)


def test_alphaedit_leaves_preserved_keys_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    preserved = torch.randn(20, 9, dtype=torch.float64, generator=generator)  # of rank 9 in 20 dimensions
    projector = null_space_projector(preserved @ preserved.T / 9, null_share=0.0)
    assert round(float(projector.trace())) == 11
    keys = torch.randn(20, 4, dtype=torch.float64, generator=generator)
    residuals = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    delta = residuals @ alphaedit_right(keys, projector, ridge=1e-6)
    assert (delta @ preserved).abs().max() < 1e-10
    torch.testing.assert_close(delta @ keys, residuals, rtol=1e-4, atol=1e-4)


def test_alphaedit_equals_the_papers_formula() -> None:
    """Fang et al. 2025, eq. 12: Δ = R Kᵀ P (Kₚ Kₚᵀ P + K Kᵀ P + λ I)⁻¹."""
    keys, residuals, covariance = random_problem(n=4)
    earlier = random_problem(n=9)[0][:, 5:]
    projector = null_space_projector(covariance, null_share=0.4)
    delta = residuals @ alphaedit_right(keys, projector, ridge=0.7, earlier_keys=earlier)
    inner = (earlier @ earlier.T + keys @ keys.T) @ projector + 0.7 * torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(delta, residuals @ keys.T @ projector @ torch.linalg.inv(inner), rtol=1e-8, atol=1e-10)


def test_the_null_space_holds_the_share_it_is_given() -> None:
    covariance = torch.diag(torch.tensor([50.0, 30.0, 15.0, 4.0, 1.0], dtype=torch.float64))
    projector = null_space_projector(covariance, null_share=0.05)  # 1% and 4% of the trace
    torch.testing.assert_close(projector, torch.diag(torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)))


def test_dropping_keys_equals_solving_without_them() -> None:
    keys, _, covariance = random_problem()
    right = memit_right(keys, factorise(covariance), covariance_weight=3.0)
    without = memit_right(keys[:, [0, 2, 4]], factorise(covariance), covariance_weight=3.0)
    torch.testing.assert_close(drop_keys(right, keys, [1, 3]), without, rtol=1e-6, atol=1e-8)


def test_directions_without_any_key_are_no_obstacle() -> None:
    """A unit that never fires has a zero row in C; the edit of a key without it leaves its weights alone."""
    covariance = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    key = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)
    right = memit_right(key, factorise(covariance), covariance_weight=1.0)
    torch.testing.assert_close(right, torch.tensor([[0.2, 0.4, 0.0]], dtype=torch.float64), rtol=1e-6, atol=1e-8)


def test_a_covariance_of_nothing_is_named() -> None:
    with pytest.raises(UserError, match="gave no keys"):
        factorise(torch.zeros(3, 3, dtype=torch.float64))


def test_fewer_keys_than_dimensions_are_enough() -> None:
    """Where float32 products have left C an eigenvalue below zero, by more than the smallest ridge."""
    seen = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(1, -1, 64)
    covariance = (seen.T @ seen).double() / 16
    ridge = RIDGES[0] * covariance.trace() / 64
    assert torch.linalg.eigvalsh(covariance)[0] < -ridge
    factor = factorise(covariance)
    mean = covariance.trace() / 64
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=0, atol=1e-4 * float(mean))
    with pytest.raises(UserError, match="64 dimensions cannot be factorised"):
        factorise(covariance - 0.1 * mean * torch.eye(64))


def test_what_each_context_is_to_come_to_by_hand() -> None:
    """Two facts of two and one contexts: δ = (1, 0) and (0, −2) of the first one are added to every one."""
    h = torch.tensor([[1.0, 1.0], [5.0, 5.0], [0.0, 3.0]])
    wanted = wanted_states(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), h, [2, 1])
    assert wanted.tolist() == [[2.0, 1.0], [6.0, 5.0], [0.0, 1.0]]


def test_the_authors_mean_key_by_hand() -> None:
    """Half of it is the bare prompt's, half the mean behind two texts: ½ · 8 + ½ · (2 + 4)/2 = 5.5; alone it is all."""
    row = TokenRow((1, 2), 1)
    fact = LocatedFact(facts(1)[0], (row,) * 3, bare=row, prompts=1, essence=row, target_ids=(3,), lookup="exact")
    keys = torch.tensor([[8.0], [2.0], [4.0], [7.0]])
    assert mean_keys(keys, [fact, replace(fact, contexts=(row,))]).tolist() == [[5.5], [7.0]]
