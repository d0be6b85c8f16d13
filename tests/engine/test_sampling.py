"""Drawing tokens: every rule on four tokens whose probabilities are 0.1, 0.2, 0.3 and 0.4."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.engine.sampling import argmax, draw_tokens, invert_cdf, mix, stream_keys, uniforms_at
from nanogpt_edit.engine.sampling_config import Sampling

LOGITS = torch.tensor([0.1, 0.2, 0.3, 0.4]).log() + 5  # a constant changes nothing
ALL = Sampling(temperature=1.0, top_k=None)
ALMOST_ONE = 1 - 2.0**-53  # the largest uniform number there is; as float32 it would be 1


def draw(uniforms: list[float], sampling: Sampling, logits: Tensor = LOGITS) -> tuple[list[int], list[float]]:
    tokens, logprobs = draw_tokens(
        logits.expand(len(uniforms), -1), torch.tensor(uniforms, dtype=torch.float64), sampling
    )
    return tokens.tolist(), logprobs.tolist()


# The inverse of the cumulated distribution


def test_a_token_is_the_first_whose_cumulated_probability_passes_u() -> None:
    # Cumulated: 0.1, 0.3, 0.6, 1.
    tokens, logprobs = draw([0.0, 0.09, 0.11, 0.29, 0.31, 0.59, 0.61, ALMOST_ONE], ALL)
    assert tokens == [0, 0, 1, 1, 2, 2, 3, 3]
    assert logprobs == pytest.approx([math.log((token + 1) / 10) for token in tokens], abs=1e-6)


def test_weights_need_not_add_up_to_one() -> None:
    weights = torch.tensor([[1.0, 0.0, 2.0, 1.0]]).expand(5, -1)  # quarters, exact in binary
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75], dtype=torch.float64)
    assert invert_cdf(weights, uniforms).flatten().tolist() == [0, 0, 2, 2, 3]


def test_a_u_close_to_one_never_draws_a_token_of_probability_zero() -> None:
    weights = torch.tensor([[0.3, 0.7, 0.0, 0.0]])
    assert invert_cdf(weights, torch.tensor([ALMOST_ONE], dtype=torch.float64)).item() == 1
    assert invert_cdf(torch.tensor([[0.0, 0.0, 5.0]]), torch.zeros(1, dtype=torch.float64)).item() == 2


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 1e-8, 0.1, 1 / 3, 1.0, 7.0]), min_size=1, max_size=12).filter(any),
    u=st.floats(0, ALMOST_ONE) | st.sampled_from([0.0, 0.5, ALMOST_ONE]),
)
def test_only_tokens_that_have_a_probability_are_drawn(weights: list[float], u: float) -> None:
    chosen = invert_cdf(torch.tensor([weights]), torch.tensor([u], dtype=torch.float64)).item()
    assert weights[int(chosen)] > 0


def test_every_token_comes_as_often_as_it_should() -> None:
    # u on the middles of 1,000 equal pieces of [0, 1): 100, 200, 300 and 400 of them fall to the four tokens.
    tokens, _ = draw([(i + 0.5) / 1000 for i in range(1000)], ALL)
    assert [tokens.count(token) for token in range(4)] == [100, 200, 300, 400]


# Temperature


def test_half_the_temperature_squares_the_probabilities() -> None:
    # 0.01, 0.04, 0.09, 0.16 of 0.30: cumulated 1/30, 5/30, 14/30, 1.
    tokens, logprobs = draw([0.03, 0.04, 0.16, 0.17, 0.46, 0.47], Sampling(temperature=0.5, top_k=None))
    assert tokens == [0, 1, 1, 2, 2, 3]
    squares = [math.log((token + 1) ** 2 / 30) for token in tokens]
    assert logprobs == pytest.approx(squares, abs=1e-6)


def test_greedy_takes_the_most_probable_token_and_reports_it_at_temperature_1() -> None:
    tokens, logprobs = draw([0.0, 0.5, ALMOST_ONE], Sampling(temperature=0, top_k=None))
    assert tokens == [3, 3, 3]
    assert logprobs == pytest.approx([math.log(0.4)] * 3, abs=1e-6)


@pytest.mark.parametrize("size", [3, 63, 64, 65, 128, 1000])
def test_the_highest_logit_is_found_wherever_it_stands_and_the_first_of_equal_ones(size: int) -> None:
    everywhere = torch.eye(size) + torch.zeros(size, size + 5)[:, :size]
    assert argmax(everywhere)[:, 0].tolist() == list(range(size))
    rounded = torch.randn(50, size).round()
    assert torch.equal(argmax(rounded), rounded.argmax(dim=-1, keepdim=True))


def test_logits_of_any_size() -> None:
    extreme = torch.tensor([-1e4, 3e4, 3e4, -float("inf")])
    for sampling in (ALL, Sampling(temperature=0.01, top_k=3), Sampling(temperature=1.0, top_k=None, top_p=0.9)):
        tokens, logprobs = draw([0.0, 0.49, 0.51, ALMOST_ONE], sampling, extreme)
        assert tokens == [1, 1, 2, 2]
        rounding = 2.0**-23 * 3e4 / sampling.temperature  # of the logits themselves, in float32
        assert logprobs == pytest.approx([-math.log(2)] * 4, abs=rounding)
    tokens, logprobs = draw([0.5], Sampling(temperature=1e-6, top_k=None), torch.tensor([0.0, 1.0]))
    assert (tokens, logprobs) == ([1], [0.0])


def test_half_precision_logits_are_computed_in_float32() -> None:
    # 300 in bfloat16 next to 300.25: the difference survives the softmax only in higher precision.
    logits = torch.zeros(1, 400, dtype=torch.bfloat16)
    _, logprobs = draw_tokens(logits, torch.tensor([0.5], dtype=torch.float64), ALL)
    assert logprobs.dtype == torch.float32
    assert logprobs.item() == pytest.approx(-math.log(400), abs=1e-5)


# Top-k and top-p


def test_top_k_keeps_the_most_probable_and_reports_the_full_softmax() -> None:
    # Kept: 0.4 and 0.3, most probable first: u below 4/7 = 0.571 gives token 3, above it token 2.
    tokens, logprobs = draw([0.0, 0.57, 0.572, ALMOST_ONE], Sampling(temperature=1.0, top_k=2))
    assert tokens == [3, 3, 2, 2]
    assert logprobs == pytest.approx([math.log(0.4)] * 2 + [math.log(0.3)] * 2, abs=1e-6)


def test_top_1_is_greedy_and_a_large_k_is_none() -> None:
    uniforms = [(i + 0.5) / 20 for i in range(20)]
    assert draw(uniforms, Sampling(temperature=1.0, top_k=1))[0] == [3] * 20
    for large in (4, 5, 1000):
        assert draw(uniforms, Sampling(temperature=1.0, top_k=large)) == draw(uniforms, ALL)


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    def kept(top_p: float, top_k: int | None = None) -> set[int]:
        sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p)
        return set(draw([(i + 0.5) / 1000 for i in range(1000)] + [ALMOST_ONE], sampling)[0])

    # 0.4 reaches 0.39 alone; 0.41 needs 0.4 + 0.3; 0.75 needs 0.4 + 0.3 + 0.2; 0.95 needs all.
    assert kept(1e-6) == kept(0.39) == {3}
    assert kept(0.41) == kept(0.69) == {3, 2}
    assert kept(0.75) == {3, 2, 1}
    assert kept(0.95) == kept(1.0) == {3, 2, 1, 0}
    # Top-k first: of three tokens 4/9 + 3/9 = 0.778 reach 0.75 already.
    assert kept(0.75, top_k=3) == {3, 2}


def test_top_p_draws_in_proportion_to_what_is_kept() -> None:
    # 0.4 : 0.3 again, by another rule; the temperature acts before it.
    tokens, logprobs = draw([0.57, 0.572], Sampling(temperature=1.0, top_k=None, top_p=0.6))
    assert tokens == [3, 2]
    assert logprobs == pytest.approx([math.log(0.4), math.log(0.3)], abs=1e-6)
    # Squared: 0.16 / 0.30 = 0.533 reaches 0.5 alone.
    assert draw([ALMOST_ONE], Sampling(temperature=0.5, top_k=None, top_p=0.5))[0] == [3]


# Uniform numbers

MASK = (1 << 64) - 1


def split_mix(x: int) -> int:
    """SplitMix64's finaliser as its authors write it, on Python's integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@given(st.integers(-(2**63), 2**63 - 1))
def test_mixing_is_split_mix_64(x: int) -> None:
    assert mix(torch.tensor([x])).item() & MASK == split_mix(x & MASK)


def test_a_uniform_number_depends_on_seed_prompt_sample_and_step_only() -> None:
    golden = 0x9E3779B97F4A7C15
    for seed, prompt, sample, step in product((0, 7), (0, 3, 2**32 - 1), (0, 1, 15), (0, 1, 400)):
        key = split_mix((seed + golden) & MASK)
        key = split_mix((key + prompt * golden) & MASK)
        key = split_mix((key + sample * golden + 1) & MASK)
        expected = (split_mix((key + step * golden) & MASK) >> 11) * 2.0**-53
        keys = stream_keys(seed, torch.tensor([9, prompt]), torch.tensor([2, sample]))  # in any company
        assert uniforms_at(keys, torch.tensor([5, step]))[1].item() == expected


def grid(*sizes: int) -> list[Tensor]:
    """The coordinates of every cell of a grid, one flat tensor per axis."""
    return list(torch.cartesian_prod(*map(torch.arange, sizes)).unbind(dim=1))


def test_uniform_numbers_look_uniform_and_unrelated() -> None:
    prompts, samples, steps = grid(20, 10, 100)
    u = uniforms_at(stream_keys(0, prompts, samples), steps)
    n = len(u)
    assert n == len(u.unique()) == 20_000
    assert u.min() >= 0
    assert u.max() < 1
    # Kolmogorov and Smirnov: the largest distance of the cumulated distribution is below 1.63/√n in 99 of 100 cases.
    ranks = torch.arange(n, dtype=torch.float64) / n
    assert (u.sort().values - ranks).abs().max() < 1.63 / math.sqrt(n)
    # Neighbours along every axis are uncorrelated: within 3/√n of 0.
    standard = (u - 0.5).view(20, 10, 100) * math.sqrt(12)
    for axis, size in enumerate(standard.shape):
        ahead, behind = standard.narrow(axis, 1, size - 1), standard.narrow(axis, 0, size - 1)
        assert abs((ahead * behind).mean().item()) < 3 / math.sqrt(ahead.numel())


def test_streams_do_not_run_into_each_other() -> None:
    # Sample 1 at step t is not sample 0 at step t + 1, nor prompt 1 sample 0 prompt 0 sample 1.
    prompts, samples, steps = grid(40, 40, 40)
    assert len(uniforms_at(stream_keys(3, prompts, samples), steps).unique()) == 64_000


# Settings


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is negative"),
        ({"top_k": 0}, "top_k 0 leaves no token"),
        ({"top_p": 0.0}, "top_p 0.0 is not in"),
        ({"top_p": 1.1}, "top_p 1.1 is not in"),
        ({"max_new_tokens": 0}, "max_new_tokens 0 leaves nothing"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Sampling(**wrong)  # type: ignore[arg-type]
