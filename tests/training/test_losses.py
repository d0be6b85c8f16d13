"""Every term of the objective against numbers worked out by hand, and its gradient against the naive formula's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanogpt_edit.model.head import cross_entropy_sum, head_logprobs
from nanogpt_edit.training.losses import (
    GRPOTerms,
    group_advantages,
    grpo_loss,
    has_signal,
)
from nanogpt_edit.training.policy_losses import most_uncertain


def terms(
    ratio: float | list[float],
    advantage: float | list[float],
    *,
    weights: list[float] | None = None,
    ref_drift: list[float] | None = None,
    entropy: list[float] | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    dual_clip: float | None = None,
) -> tuple[GRPOTerms, Tensor]:
    """The terms for tokens with these probability ratios, and d loss / d logprob of each."""
    ratios = torch.tensor([ratio] if isinstance(ratio, float) else ratio, dtype=torch.float64)
    advantages = torch.tensor([advantage] if isinstance(advantage, float) else advantage, dtype=torch.float64)
    n = len(ratios)
    logprobs = torch.full((n,), -2.0, dtype=torch.float64, requires_grad=True)
    found = grpo_loss(
        logprobs,
        logprobs.detach() - ratios.log(),
        None if ref_drift is None else logprobs.detach() + torch.tensor(ref_drift, dtype=torch.float64),
        torch.zeros(n, dtype=torch.float64) if entropy is None else torch.tensor(entropy, dtype=torch.float64),
        advantages,
        torch.ones(n, dtype=torch.float64) if weights is None else torch.tensor(weights, dtype=torch.float64),
        clip_low=clip_low,
        clip_high=clip_high,
        kl_coef=kl_coef,
        entropy_coef=entropy_coef,
        dual_clip=dual_clip,
    )
    (gradient,) = torch.autograd.grad(found.loss, logprobs)
    return found, gradient


# Cross-entropy and log-probabilities


def test_cross_entropy_by_hand() -> None:
    # p = (1/2, 1/4, 1/4) and (1/10, 1/5, 7/10): targets 1 and 2 cost log 4 + log(10/7).
    logits = torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 7.0]]).log()
    loss = cross_entropy_sum(logits, torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(math.log(4) + math.log(10 / 7), abs=1e-6)
    assert cross_entropy_sum(logits.bfloat16(), torch.tensor([1, 2])).dtype == torch.float32


def token_logprobs(logits: Tensor, targets: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """With a head that passes the states on, they are the logits."""
    return head_logprobs(logits, torch.eye(logits.shape[1]), targets, temperature=temperature)


def test_logprobs_and_entropy_by_hand() -> None:
    # Weights 1 : 2 : 1 at temperature 1; squared, 1 : 4 : 1, at temperature 1/2.
    logits = torch.tensor([[1.0, 2.0, 1.0]]).log()
    target = torch.tensor([1])
    logprobs, entropy = token_logprobs(logits, target, temperature=1.0)
    assert logprobs.tolist() == pytest.approx([math.log(1 / 2)], abs=1e-6)
    assert entropy.tolist() == pytest.approx([1.5 * math.log(2)], abs=1e-6)  # ½ log 2 + 2 · ¼ log 4
    logprobs, entropy = token_logprobs(logits, target, temperature=0.5)
    assert logprobs.tolist() == pytest.approx([math.log(2 / 3)], abs=1e-6)
    assert entropy.tolist() == pytest.approx([2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(6)], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_logprobs_and_entropy_are_torchs(temperature: float) -> None:
    logits, targets = torch.randn(7, 33) * 4, torch.randint(0, 33, (7,))
    logprobs, entropy = token_logprobs(logits, targets, temperature=temperature)
    theirs = torch.distributions.Categorical(logits=logits / temperature)
    torch.testing.assert_close(logprobs, theirs.log_prob(targets))
    torch.testing.assert_close(entropy, theirs.entropy())


def test_the_entropy_of_certainty_is_zero_and_of_ignorance_log_v() -> None:
    certain = torch.tensor([[0.0, -1e4, -1e4]])
    assert token_logprobs(certain, torch.tensor([0]), temperature=1.0)[1].tolist() == [0.0]
    ignorant = torch.zeros(1, 50)
    assert token_logprobs(ignorant, torch.tensor([3]), temperature=0.1)[1].item() == pytest.approx(math.log(50))


# Advantages


def test_advantages_by_hand() -> None:
    # Rewards 1, 0, 0, 1: mean ½; their squared distances add up to 1, over 3 gives the sample's variance 1/3.
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    assert group_advantages(rewards, advantage="mean").tolist() == [[0.5, -0.5, -0.5, 0.5]]
    z = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    assert group_advantages(rewards).flatten().tolist() == pytest.approx([z, -z, -z, z])
    # 0, 0, 3: mean 1, variance (1 + 1 + 4) / 2 = 3.
    z = 1 / (math.sqrt(3) + 1e-4)
    assert group_advantages(torch.tensor([[0.0, 0.0, 3.0]])).flatten().tolist() == pytest.approx([-z, -z, 2 * z])


def test_advantages_in_units_of_the_batch_by_hand() -> None:
    # 1, 0 and 1, 1: the mean of all four is 3/4, their variance 3 · (1/4)² + (3/4)² over 3 = 1/4.
    found = group_advantages(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), advantage="batch")
    assert found.flatten().tolist() == pytest.approx([0.5 / 0.5001, -0.5 / 0.5001, 0, 0])


def test_a_completion_is_compared_with_its_own_group_only() -> None:
    alone = group_advantages(torch.tensor([[1.0, 0.0]]))
    together = group_advantages(torch.tensor([[1.0, 0.0], [70.0, -30.0]]))
    assert torch.equal(together[:1], alone)
    assert together.sum(dim=1).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_equal_rewards_give_no_advantage_rather_than_a_division_by_zero() -> None:
    for kind in ("zscore", "mean"):
        assert group_advantages(torch.tensor([[1.0, 1.0, 1.0]]), advantage=kind).tolist() == [[0, 0, 0]]  # type: ignore[arg-type]


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_advantages_follow_the_order_of_the_rewards(rewards: list[float]) -> None:
    advantages = group_advantages(torch.tensor([rewards], dtype=torch.float64))[0].tolist()
    assert sum(advantages) == pytest.approx(0, abs=1e-6)
    for r, a in zip(rewards, advantages, strict=True):
        for other_r, other_a in zip(rewards, advantages, strict=True):
            assert (r > other_r + 1e-9) <= (a > other_a)


def test_a_group_carries_signal_when_its_rewards_differ() -> None:
    rewards = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.5, 0.5, 0.5 + 5e-7], [0.0, 0.0, 2e-6]])
    assert has_signal(rewards).tolist() == [False, True, False, True]


# The clipped policy gradient
#
# A token: -min(ρ A, clip(ρ, 0.8, 1.28) A). Its gradient with respect to the log-probability is -ρ A where the first of
# the two is the smaller one, and 0 where it is held back.


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "low", "high"),
    [
        (1.0, 2.0, -2.0, -2.0, 0, 0),  # on-policy: plain policy gradient
        (1.2, 2.0, -2.4, -2.4, 0, 0),  # above 1.2, below 1.28: still free (clip-higher)
        (1.5, 2.0, -2.56, 0.0, 0, 1),  # a good token has risen enough: held at 1.28 · 2
        (1.5, -2.0, 3.0, 3.0, 0, 0),  # a bad token that has risen is pushed down freely
        (0.5, -2.0, 1.6, 0.0, 1, 0),  # a bad token has fallen enough: held at 0.8 · 2
        (0.5, 2.0, -1.0, -1.0, 0, 0),  # a good token that has fallen is pushed up freely
        (1.5, 0.0, 0.0, 0.0, 0, 0),  # no advantage, nothing to do
    ],
)
def test_each_side_of_the_clip(
    ratio: float, advantage: float, loss: float, gradient: float, low: int, high: int
) -> None:
    found, slope = terms(ratio, advantage)
    assert found.loss.item() == pytest.approx(loss)
    assert found.policy == pytest.approx(loss)
    assert slope.tolist() == pytest.approx([gradient])
    assert (found.clipped_low, found.clipped_high) == (low, high)


def test_equal_clips_are_plain_grpo() -> None:
    found, slope = terms(1.25, 1.0, clip_high=0.2)
    assert found.loss.item() == pytest.approx(-1.2)
    assert slope.tolist() == [0.0]
    assert found.clipped_high == 1


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (5.0, -2.0, 6.0, 0.0),  # a bad token that has risen fivefold costs no more than at 3
        (2.0, -2.0, 4.0, 4.0),  # below 3 nothing changes
        (0.5, -2.0, 1.6, 0.0),  # nor at the lower clip
        (5.0, 2.0, -2.56, 0.0),  # nor for a good token
    ],
)
def test_the_dual_clip_bounds_what_a_bad_token_costs(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    found, slope = terms(ratio, advantage, dual_clip=3.0)
    assert found.loss.item() == pytest.approx(loss)
    assert slope.tolist() == pytest.approx([gradient])


def test_each_token_says_where_it_was_held_back() -> None:
    found, _ = terms([1.5, 1.0, 0.5, 1.5], [2.0, 2.0, -2.0, -2.0], weights=[0.5, 0.25, 0.125, 0.125])
    assert found.clipped.tolist() == [1, 0, -1, 0]
    assert found.weight == 1.0


def test_weights_multiply_each_token_and_its_metrics() -> None:
    # -(0.5 · 1 · 1 + 0.25 · 1.28 · 2 + 0.125 · 0.8 · (-4)) = -0.5 - 0.64 + 0.4
    found, slope = terms([1.0, 1.5, 0.5], [1.0, 2.0, -4.0], weights=[0.5, 0.25, 0.125])
    assert found.loss.item() == pytest.approx(-0.74)
    assert slope.tolist() == pytest.approx([-0.5, 0.0, 0.0])
    assert (found.clipped_low, found.clipped_high) == (0.125, 0.25)
    assert found.largest_log_ratio == pytest.approx(math.log(2))


# The other objectives


def slopes(
    objective: str, ratio: list[float], advantage: list[float], **settings: object
) -> tuple[GRPOTerms, list[float]]:
    """The terms of an objective, and d loss / d logprob of each token."""
    ratios, n = torch.tensor(ratio, dtype=torch.float64), len(ratio)
    logprobs = torch.full((n,), -2.0, dtype=torch.float64, requires_grad=True)
    zeros, ones = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    limits = {"clip_low": 0.2, "clip_high": 0.28, "kl_coef": 0.0, "entropy_coef": 0.0} | settings
    found = grpo_loss(
        logprobs,
        logprobs.detach() - ratios.log(),
        None,
        zeros,
        torch.tensor(advantage, dtype=torch.float64),
        ones,
        objective=objective,  # type: ignore[arg-type]
        **limits,  # type: ignore[arg-type]
    )
    return found, torch.autograd.grad(found.loss, logprobs)[0].tolist()


@pytest.mark.parametrize("objective", ["clip", "gspo", "cispo", "sapo"])
def test_all_objectives_climb_alike_where_the_policy_is_the_one_that_sampled(objective: str) -> None:
    _, slope = slopes(objective, [1.0] * 4, [2.0, 2.0, 2.0, -0.5], lengths=[3, 1])
    assert slope == pytest.approx([-2.0, -2.0, -2.0, 0.5])


def test_gspo_by_hand() -> None:
    # Two tokens of ratio 2 and 1/2: the completion's is 1, so neither is held, and each has slope -A · 1.
    found, slope = slopes("gspo", [2.0, 0.5, 1.5, 1.5], [1.0, 1.0, 2.0, 2.0], lengths=[2, 2])
    # The second's is 1.5: a good completion that has risen enough, both its tokens held at 1.28 · 2.
    assert found.loss.item() == pytest.approx(-(1 + 1 + 2.56 + 2.56))
    assert slope == pytest.approx([-1.0, -1.0, 0.0, 0.0])
    assert found.clipped.tolist() == [0, 0, 1, 1]
    assert found.largest_log_ratio == pytest.approx(math.log(2))  # of tokens, for the check of sampler and trainer


def test_gspo_is_clip_where_every_completion_has_one_token() -> None:
    ratio, advantage = [1.5, 0.5, 1.1, 0.7], [2.0, -2.0, 1.0, 1.0]
    one, other = (slopes(name, ratio, advantage, lengths=[1] * 4) for name in ("gspo", "clip"))
    assert one[0].loss.item() == pytest.approx(other[0].loss.item())
    assert one[1] == pytest.approx(other[1])


def test_cispo_bounds_the_weight_and_drops_no_token() -> None:
    # -clip(ρ, 0.8, 1.28) A logprob at logprob -2; the weight has no slope of its own.
    found, slope = slopes("cispo", [1.5, 1.1, 0.5, 1.5], [2.0, 1.0, -1.0, 0.0])
    assert slope == pytest.approx([-2.56, -1.1, 0.8, 0.0])
    assert found.loss.item() == pytest.approx(2 * 2.56 + 2 * 1.1 - 2 * 0.8)
    assert found.clipped.tolist() == [1, 0, -1, 0]


def test_sapo_by_hand() -> None:
    # A good token of ρ 2: 4 σ(1) · A; slope 4 σ(1) (1 - σ(1)) ρ A. A bad one: τ 1.05.
    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    found, slope = slopes("sapo", [2.0, 2.0], [3.0, -3.0])
    good, bad = sigma(1.0), sigma(1.05)
    assert found.loss.item() == pytest.approx(-4 * good * 3 + 4 / 1.05 * bad * 3)
    assert slope == pytest.approx([-4 * good * (1 - good) * 2 * 3, 4 * bad * (1 - bad) * 2 * 3])
    assert found.clipped.tolist() == [0, 0]


def test_only_uncertain_tokens_have_a_policy_term_and_all_have_the_others() -> None:
    entropy = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.2, 3.0, 1.0])
    assert most_uncertain(entropy, [5, 2], 0.4).tolist() == [False, True, False, True, False, True, False]
    assert most_uncertain(entropy, [5, 2], 1e-9).tolist() == [False, True, False, True, False, True, False]  # a tie
    assert most_uncertain(entropy, [7, 0], 1.0).all()
    uncertain = torch.tensor([True, False])
    found, slope = slopes("clip", [1.0, 1.0], [1.0, 1.0], uncertain=uncertain)
    assert (found.policy, slope, found.weight) == (pytest.approx(-1.0), pytest.approx([-1.0, 0.0]), 2.0)


# Divergence and entropy


def test_k3_by_hand() -> None:
    # d = ref - logprob: exp(d) - d - 1 is 0 at 0, 1 - log 2 at log 2, log 2 - 1/2 at -log 2; its slope is 1 - exp(d).
    found, slope = terms([1.0] * 3, [0.0] * 3, ref_drift=[0.0, math.log(2), -math.log(2)], kl_coef=0.1)
    assert found.kl == pytest.approx(0.5)  # 0 + (1 - log 2) + (log 2 - 1/2)
    assert found.loss.item() == pytest.approx(0.05)
    assert slope.tolist() == pytest.approx([0.0, -0.1, 0.05])


def test_without_a_reference_there_is_no_divergence() -> None:
    found, _ = terms(1.0, 1.0, kl_coef=5.0)
    assert found.kl == 0
    assert found.loss.item() == pytest.approx(-1.0)


def test_on_average_k3_is_the_divergence() -> None:
    # The mean of k3 over the policy's own tokens is KL(policy ‖ reference) exactly.
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    found = grpo_loss(
        policy.log(),
        policy.log(),
        reference.log(),
        torch.zeros(3),
        torch.zeros(3),
        policy,
        clip_low=0.2,
        clip_high=0.28,
        kl_coef=1.0,
        entropy_coef=0.0,
    )
    assert found.kl == pytest.approx((policy * (policy / reference).log()).sum().item(), abs=1e-6)


def test_all_terms_together_by_hand() -> None:
    # policy -(½ · 1.28 · 1 + ½ · 0.9 · (-1)) = -0.19; k3 ½ (1 - log 2) = 0.153426; entropy ½ (1.2 + 0.8) = 1.
    found, _ = terms(
        [2.0, 0.9],
        [1.0, -1.0],
        weights=[0.5, 0.5],
        ref_drift=[math.log(2), 0.0],
        entropy=[1.2, 0.8],
        kl_coef=0.04,
        entropy_coef=0.01,
    )
    assert found.policy == pytest.approx(-0.19)
    assert found.kl == pytest.approx(0.1534264)
    assert found.entropy == pytest.approx(1.0)
    assert found.loss.item() == pytest.approx(-0.19 + 0.04 * 0.1534264 - 0.01)
    assert found.clipped_high == 0.5
    assert found.clipped_low == 0


def test_no_tokens_no_loss() -> None:
    empty = torch.zeros(0, requires_grad=True)
    found = grpo_loss(empty, empty, empty, empty, empty, empty, clip_low=0.2, clip_high=0.2, kl_coef=1, entropy_coef=1)
    assert (found.loss.item(), found.largest_log_ratio) == (0, 0)


# Against the formula, written down naively


def naive_loss(
    logits: Tensor,
    targets: Tensor,
    old: Tensor,
    ref: Tensor,
    advantages: Tensor,
    *,
    temperature: float,
    kl_coef: float,
    entropy_coef: float,
) -> Tensor:
    total = logits.new_zeros(())
    for t in range(len(targets)):
        p = torch.softmax(logits[t] / temperature, dim=0)
        ratio = p[targets[t]] / old[t].exp()
        clipped = min(max(ratio, torch.tensor(0.8)), torch.tensor(1.28))
        total = total - min(ratio * advantages[t], clipped * advantages[t])
        odds = ref[t].exp() / p[targets[t]]
        total = total + kl_coef * (odds - odds.log() - 1) - entropy_coef * -(p * p.log()).sum()
    return total / len(targets)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 12),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    kl_coef=st.sampled_from([0.0, 0.3]),
    entropy_coef=st.sampled_from([0.0, 0.2]),
)
def test_value_and_gradient_are_those_of_the_formula(
    seed: int, tokens: int, temperature: float, kl_coef: float, entropy_coef: float
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    logits, targets = normal(tokens, 6).float().requires_grad_(), torch.randint(0, 6, (tokens,), generator=generator)
    logprobs, entropy = token_logprobs(logits, targets, temperature=temperature)
    old, ref = (logprobs.detach() + 0.3 * normal(tokens).float() for _ in range(2))
    advantages = normal(tokens).float()
    found = grpo_loss(
        logprobs,
        old,
        ref,
        entropy,
        advantages,
        torch.full((tokens,), 1 / tokens),
        clip_low=0.2,
        clip_high=0.28,
        kl_coef=kl_coef,
        entropy_coef=entropy_coef,
    )
    expected = naive_loss(
        logits, targets, old, ref, advantages, temperature=temperature, kl_coef=kl_coef, entropy_coef=entropy_coef
    )
    torch.testing.assert_close(found.loss, expected)
    ours = torch.autograd.grad(found.loss, logits)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(expected, logits)[0])


@given(cut=st.integers(0, 9))
def test_micro_batches_add_up(cut: int) -> None:
    generator = torch.Generator().manual_seed(cut)
    logprobs, old, ref, entropy, advantages = (torch.randn(9, generator=generator) for _ in range(5))
    weights = torch.full((9,), 1 / 9)

    def over(tokens: slice) -> GRPOTerms:
        inputs = (each[tokens] for each in (logprobs, old, ref, entropy, advantages, weights))
        return grpo_loss(*inputs, clip_low=0.2, clip_high=0.28, kl_coef=0.1, entropy_coef=0.01)

    whole, parts = over(slice(9)), (over(slice(cut)), over(slice(cut, 9)))
    for name in ("loss", "policy", "kl", "entropy", "clipped_low", "clipped_high"):
        assert sum(float(getattr(part, name)) for part in parts) == pytest.approx(float(getattr(whole, name)), abs=1e-5)
    assert max(part.largest_log_ratio for part in parts) == whole.largest_log_ratio
