"""Muon: the orthogonal step against the singular value decomposition, and one step by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nanogpt_edit.training.muon import Muon, orthogonalise


def random_matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 100 + columns))


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 64), (1, 8), (8, 1)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = random_matrix(*shape)
    u, before, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalise(matrix)
    assert result.shape == matrix.shape
    # In the matrix's own singular directions the result is diagonal: U and V are kept, S becomes about 1.
    inner = u.T @ result @ v.T
    after = inner.diagonal()
    assert (inner - after.diag()).abs().max() < 1e-4
    large = before > 0.01 * before.norm()  # five iterations lift what is smaller only part of the way
    assert large.sum() >= 0.9 * len(large)
    assert after[large].min() > 0.6
    assert after[large].max() < 1.3


def test_the_size_of_the_gradient_does_not_matter() -> None:
    matrix = random_matrix(12, 20)
    torch.testing.assert_close(orthogonalise(1000 * matrix), orthogonalise(matrix), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(orthogonalise(1e-3 * matrix), orthogonalise(matrix), atol=1e-3, rtol=1e-3)
    assert not orthogonalise(torch.zeros(3, 4)).any()


def test_a_tall_matrix_is_treated_as_its_transpose() -> None:
    matrix = random_matrix(20, 6)
    torch.testing.assert_close(orthogonalise(matrix), orthogonalise(matrix.T).T)


def test_half_precision_is_given_back_as_it_came() -> None:
    matrix = random_matrix(8, 8).bfloat16()
    result = orthogonalise(matrix)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), orthogonalise(matrix.float()), atol=0.01, rtol=0.01)


def test_two_steps_by_hand() -> None:
    # A 1 × 1 matrix g becomes sign(g) · c, the same c for every size: only momentum's sign and the step show.
    c = orthogonalise(torch.tensor([[2.0]])).item()
    assert 0.6 < c < 1.3
    weight = nn.Parameter(torch.tensor([[10.0]]))
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    # Momentum 0.9 · 0 + 0.1 · 1 = 0.1; ahead 0.1 · 1 + 0.9 · 0.1 = 0.19 > 0. Decay: 10 · (1 - 0.1 · 0.5) = 9.5.
    weight.grad = torch.tensor([[1.0]])
    optimizer.step()
    assert optimizer.state[weight]["momentum"].item() == pytest.approx(0.1)
    assert weight.item() == pytest.approx(9.5 - 0.1 * c)
    # Momentum 0.9 · 0.1 - 0.1 · 0.5 = 0.04; ahead 0.1 · (-0.5) + 0.9 · 0.04 = -0.014: Nesterov already turns round.
    before = weight.item()
    weight.grad = torch.tensor([[-0.5]])
    optimizer.step()
    assert optimizer.state[weight]["momentum"].item() == pytest.approx(0.04)
    assert weight.item() == pytest.approx(0.95 * before + 0.1 * c)


def test_tall_matrices_take_longer_steps() -> None:
    # √(rows / columns) for more rows than columns, 1 otherwise: each output moves as far in either shape.
    for rows, columns, factor in ((16, 4, 2.0), (4, 16, 1.0), (8, 8, 1.0)):
        weight = nn.Parameter(torch.zeros(rows, columns))
        gradient = random_matrix(rows, columns)
        weight.grad = gradient.clone()
        Muon([weight], lr=1.0, momentum=0.0).step()
        torch.testing.assert_close(weight.data, -factor * orthogonalise(gradient))


def test_a_weight_without_a_gradient_stays() -> None:
    weight, still = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = Muon([weight, still], lr=0.1, weight_decay=0.1)
    weight.grad = torch.eye(2)
    optimizer.step()
    assert not torch.equal(weight.data, torch.ones(2, 2))
    assert torch.equal(still.data, torch.ones(2, 2))
    assert still not in optimizer.state
