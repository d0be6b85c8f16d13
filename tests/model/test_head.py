"""The loss from states in chunks against the plain one: the same number, the same gradients, never all logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from conftest import tiny_config
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanogpt_edit.model import head
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.head import cross_entropy_sum, head_cross_entropy_sum, head_logprobs, target_logprobs
from nanogpt_edit.training.pretrain import next_token_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def inputs(rows: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    return states, weight, torch.randint(0, vocabulary, (rows,), generator=generator)


def test_by_hand_one_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Logits log 2, log 1, log 1 and log 1, log 2, log 7: targets 1 and 2 cost log 4 + log (10/7).
    monkeypatch.setattr(head, "CHUNK_NUMBERS", 3)
    states = torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 7.0]]).log().requires_grad_()
    loss = head_cross_entropy_sum(states, torch.eye(3), torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(math.log(4) + math.log(10 / 7), abs=1e-6)
    loss.backward()
    assert states.grad is not None
    assert states.grad.tolist() == [
        pytest.approx([1 / 2, 1 / 4 - 1, 1 / 4], abs=1e-6),
        pytest.approx([1 / 10, 2 / 10, 7 / 10 - 1], abs=1e-6),
    ]


def room_full_of_nan(states: Tensor, weight: Tensor, *, learned: bool) -> tuple[Tensor, Tensor | None]:
    """What memory that nobody has written to may hold."""
    return torch.full_like(states, torch.nan), torch.full_like(weight, torch.nan) if learned else None


LINES = st.sampled_from([1, 8])  # rows of the head that belong together; a GPU's are 64


@given(rows=st.integers(1, 40), chunk=st.integers(1, 50), scale=st.sampled_from([1.0, 0.03]), line=LINES)
def test_loss_and_gradients_are_those_of_the_plain_loss(rows: int, chunk: int, scale: float, line: int) -> None:
    plain, chunked = inputs(rows, 8, 23), inputs(rows, 8, 23)
    expected = cross_entropy_sum(plain[0] @ plain[1].T, plain[2]) * scale
    expected.backward()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(head, "CHUNK_NUMBERS", chunk * 23)
        monkeypatch.setattr(head, "line_of", lambda device: line)
        monkeypatch.setattr(head, "room_for_gradients", room_full_of_nan)
        loss = head_cross_entropy_sum(*chunked) * scale
        loss.backward()
        with torch.no_grad():
            assert head_cross_entropy_sum(*chunked).item() * scale == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(chunked[:2], plain[:2], strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [0, 10**6])
@given(rows=st.integers(1, 30), chunk=st.integers(1, 40), temperature=st.sampled_from([0.5, 1.0, 1.7]), line=LINES)
def test_logprobs_entropies_and_gradients_are_torchs(
    kept: int, rows: int, chunk: int, temperature: float, line: int
) -> None:
    """Whether the logits are kept for the backward pass or made again."""
    plain, chunked = inputs(rows, 8, 23), inputs(rows, 8, 23)
    slopes = torch.linspace(-1, 2, rows), torch.linspace(1, -0.5, rows)
    theirs = torch.distributions.Categorical(logits=plain[0] @ plain[1].T / temperature)
    expected = theirs.log_prob(plain[2]), theirs.entropy()
    torch.autograd.backward(expected, slopes)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(head, "CHUNK_NUMBERS", chunk * 23)
        monkeypatch.setattr(head, "line_of", lambda device: line)
        monkeypatch.setattr(head, "room_for_gradients", room_full_of_nan)
        monkeypatch.setattr(head, "KEPT_NUMBERS", kept)
        found = head_logprobs(*chunked, temperature=temperature)
        torch.autograd.backward(found, slopes, retain_graph=True)
        again = torch.autograd.grad(found, chunked[:2], slopes)
        alone = target_logprobs(*chunked, temperature=temperature)
    torch.testing.assert_close(alone, found[0].detach(), rtol=1e-6, atol=1e-6)
    for ours, once_more in zip(chunked[:2], again, strict=True):
        torch.testing.assert_close(once_more, ours.grad)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    for ours, wanted in zip(chunked[:2], plain[:2], strict=True):
        torch.testing.assert_close(ours.grad, wanted.grad, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_models_gradient_does_not_depend_on_the_chunks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the head is the embedding, whose rows get a gradient from both ends."""
    windows = torch.randint(0, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    gradients = []
    for numbers in (2**23, 5 * 300):
        monkeypatch.setattr(head, "CHUNK_NUMBERS", numbers)
        model = GPT(tiny_config(family), seed=0)
        next_token_loss(model, windows).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def sum_of_logprobs(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -head_logprobs(states, weight, targets, temperature=1.0)[0].sum()


@pytest.mark.parametrize("loss_of", [head_cross_entropy_sum, sum_of_logprobs])
def test_a_head_that_does_not_learn_has_no_gradient_and_the_states_the_same(
    loss_of: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_NUMBERS", 5 * 50)
    (states, weight, targets), frozen = inputs(12, 16, 50), inputs(12, 16, 50)
    loss_of(states, weight, targets).backward()
    loss_of(frozen[0], frozen[1].requires_grad_(False), frozen[2]).backward()
    assert frozen[1].grad is None
    assert frozen[0].grad is not None
    assert states.grad is not None
    assert torch.equal(frozen[0].grad, states.grad)


@pytest.mark.parametrize("loss_of", [head_cross_entropy_sum, sum_of_logprobs])
def test_in_bfloat16_products_the_gradient_is_near(loss_of: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, chunked = inputs(12, 16, 50), inputs(12, 16, 50)
    cross_entropy_sum(plain[0] @ plain[1].T, plain[2]).backward()
    monkeypatch.setattr(head, "CHUNK_NUMBERS", 5 * 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(*chunked)
    loss.backward()
    assert loss.dtype == torch.float32
    for ours, theirs in zip(chunked[:2], plain[:2], strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == torch.float32
        assert (ours.grad - theirs.grad).abs().max() < 0.05 * theirs.grad.abs().max()
