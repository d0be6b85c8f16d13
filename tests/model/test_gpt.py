"""The decoder's own promises: its parts make the whole, its cache changes nothing, its sites can be seen and set.

That its logits are those of the published families is the business of test_model_parity.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.attention import causal_mask
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache
from nanogpt_edit.model.positions import RopeScaling, rotary_angles, rotate, stretch_frequencies
from nanogpt_edit.model.sites import SITES, capture, patch

FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])


def bold(config: GPTConfig, *, seed: int = 0) -> GPT:
    """A random model whose weights are large enough that every token before matters to the next."""
    model = GPT(config, seed=seed).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() == 2 else 1)
    return model


def random_ids(rows: int, tokens: int, *, vocab_size: int = 300) -> Tensor:
    return torch.randint(0, vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(7))


# Parts and whole


@FAMILIES
@torch.no_grad()
def test_any_spans_of_blocks_make_the_whole(family: str) -> None:
    model, ids = bold(replace(tiny_config(family), n_layer=4)), random_ids(2, 9)
    whole = model(ids)
    for cuts in ((0, 4), (0, 1, 4), (0, 2, 3, 4), (0, 1, 2, 3, 4)):
        x = model.embed_tokens(ids)
        for start, stop in pairwise(cuts):
            x = model.run_blocks(x, start=start, stop=stop)
        assert torch.equal(model.logits(model.final(x)), whole), cuts


@FAMILIES
@torch.no_grad()
def test_an_empty_span_changes_nothing(family: str) -> None:
    x = torch.randn(1, 3, 32)
    assert torch.equal(GPT(tiny_config(family), seed=0).run_blocks(x, start=1, stop=1), x)


@FAMILIES
@torch.no_grad()
def test_no_token_sees_what_comes_after(family: str) -> None:
    model, ids = bold(tiny_config(family)), random_ids(1, 12)
    changed = ids.clone()
    changed[0, 7:] = (ids[0, 7:] + 1) % 300
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])  # so right padding needs no mask
    assert (before[:, 7:] - after[:, 7:]).abs().max() > 0.1


# Cache


@FAMILIES
@settings(max_examples=15)
@given(chunks=st.lists(st.integers(1, 9), min_size=1, max_size=8), spare=st.integers(0, 3))
@torch.no_grad()
def test_a_prompt_in_chunks_of_any_size_gives_the_same_logits(family: str, chunks: list[int], spare: int) -> None:
    config = replace(tiny_config(family, vocab_size=40, block_size=80), n_embd=16)
    model, ids = bold(config), random_ids(2, sum(chunks), vocab_size=40)
    cache = KVCache(config, rows=2, capacity=sum(chunks) + spare, device="cpu", dtype=torch.float32)
    pieces = [model(part, view=cache) for part in ids.split(chunks, dim=1)]
    assert cache.length == sum(chunks)
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), atol=2e-5, rtol=1e-4)


@FAMILIES
def test_the_cache_takes_as_much_memory_as_its_formula_says(family: str) -> None:
    config = tiny_config(family)
    cache = KVCache(config, rows=3, capacity=10, device="cpu", dtype=torch.bfloat16)
    # keys and values × 2 layers × 10 tokens × heads × 8 numbers of 2 bytes = 640 heads bytes a row
    heads = {"gpt2": 4, "llama": 2}[family]
    assert KVCache.row_bytes(config, capacity=10, dtype=torch.bfloat16) == 640 * heads
    assert cache.nbytes == 3 * 640 * heads
    assert cache.nbytes == cache.keys.untyped_storage().nbytes() + cache.values.untyped_storage().nbytes()


def test_a_cache_that_is_full_says_how_much_it_holds(gpt: GPT) -> None:
    cache = KVCache(gpt.config, rows=1, capacity=4, device="cpu", dtype=torch.float32)
    gpt(random_ids(1, 3), view=cache)
    with pytest.raises(UserError, match="holds 4 tokens, 5 are needed"):
        gpt(random_ids(1, 2), view=cache)


# Masks and positions


@FAMILIES
@torch.no_grad()
def test_left_padding_with_a_mask_and_positions_is_the_row_alone(family: str) -> None:
    model, ids = bold(tiny_config(family)), random_ids(1, 6)
    padded = torch.cat((torch.tensor([[5, 5, 5]]), ids), dim=1)
    positions = (torch.arange(9) - 3).clamp(min=0)[None]
    mask = causal_mask(9, 9, device=torch.device("cpu")).clone()
    mask[3:, :3] = False
    logits = model(padded, position_ids=positions, attention_mask=mask[None, None])
    torch.testing.assert_close(logits[:, 3:], model(ids), atol=2e-5, rtol=1e-4)


def test_the_mask_of_the_last_two_of_four_tokens() -> None:
    mask = causal_mask(2, 4, device=torch.device("cpu"))
    assert mask.tolist() == [[True, True, True, False], [True, True, True, True]]


@torch.no_grad()
def test_rotary_positions_are_relative_and_learned_ones_are_not() -> None:
    ids, shifted = random_ids(1, 8), torch.arange(8) + 20
    rotary, learned = bold(tiny_config("llama")), bold(tiny_config("gpt2"))
    torch.testing.assert_close(rotary(ids, position_ids=shifted), rotary(ids), atol=1e-4, rtol=1e-4)
    assert (learned(ids, position_ids=shifted) - learned(ids)).abs().max() > 0.1
    # … but rotary does see the distances
    spread = torch.arange(8) * 2
    assert (rotary(ids, position_ids=spread) - rotary(ids)).abs().max() > 1e-3


def test_rotation_by_hand() -> None:
    # Head width 4, theta 10000: pairs (0, 2) and (1, 3) turn by 1 and by 10000^(-1/2) = 0.01 per position.
    three = torch.tensor([3])
    cosine, sine = rotary_angles(three, head_size=4, theta=10_000.0, scaling=None, dtype=torch.float32)
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4)
    expected = [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)]
    assert rotate(x, cosine, sine).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_llama_3_stretches_slow_frequencies_only() -> None:
    scaling = RopeScaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_block_size=64)
    # Over 64 positions these turn 8 times (kept), 2.5 times (half way: 1/2 + 1/2 · 1/8 = 0.5625), 1/2 times (÷ 8).
    turns = torch.tensor([8.0, 2.5, 0.5])
    frequencies = turns * 2 * math.pi / 64
    factors = stretch_frequencies(frequencies, scaling) / frequencies
    assert factors.tolist() == pytest.approx([1.0, 0.5625, 0.125])


@torch.no_grad()
def test_grouped_queries_are_plain_attention_with_repeated_keys() -> None:
    grouped = bold(tiny_config("llama"))  # 4 query heads over 2 key/value heads of width 8
    plain = GPT(replace(grouped.config, n_kv_head=4), seed=1).eval()
    weights = grouped.state_dict()
    for layer in range(2):
        name = f"blocks.{layer}.attn.qkv.weight"
        q, k, v = weights[name].split((32, 16, 16))
        twice = [part.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1) for part in (k, v)]
        weights[name] = torch.cat((q, *twice))
    plain.load_state_dict(weights)
    ids = random_ids(2, 10)
    torch.testing.assert_close(plain(ids), grouped(ids), atol=1e-5, rtol=1e-4)


# Sites


@FAMILIES
@torch.no_grad()
def test_what_is_captured_adds_up(family: str) -> None:
    model, ids = bold(tiny_config(family)), random_ids(2, 5)
    everything = [(name, layer) for name in SITES for layer in range(2)]
    with capture(model, everything) as seen:
        logits = model(ids)
    assert set(seen) == set(everything)
    mlp_size = {"gpt2": 128, "llama": 48}[family]
    assert seen["mlp_key", 0].shape == (2, 5, mlp_size)
    assert torch.equal(seen["resid_pre", 0], model.embed_tokens(ids))
    assert torch.equal(seen["resid_post", 0], seen["resid_pre", 1])
    assert torch.equal(model.logits(model.final(seen["resid_post", 1])), logits)
    for layer in range(2):
        parts = seen["resid_pre", layer] + seen["attn_out", layer] + seen["mlp_out", layer]
        torch.testing.assert_close(seen["resid_post", layer], parts)
        down = model.get_submodule(f"blocks.{layer}.mlp.down")
        assert torch.equal(down(seen["mlp_key", layer]), seen["mlp_out", layer])


@torch.no_grad()
def test_capture_holds_the_last_forward_and_only_what_was_asked(gpt: GPT) -> None:
    with capture(gpt, [("mlp_out", 1)]) as seen:
        assert seen == {}
        gpt(random_ids(1, 3))
        gpt(random_ids(1, 4))
    assert list(seen) == [("mlp_out", 1)]
    assert seen["mlp_out", 1].shape == (1, 4, 32)


@FAMILIES
@torch.no_grad()
def test_patching_a_site_is_running_the_rest_from_there(family: str) -> None:
    model, ids = bold(tiny_config(family)), random_ids(1, 6)
    delta = torch.randn(32)
    with patch(model, {("resid_post", 0): lambda x: x + delta}):
        patched = model(ids)
    state = model.run_blocks(model.embed_tokens(ids), stop=1) + delta
    assert torch.equal(patched, model.logits(model.final(model.run_blocks(state, start=1))))


@torch.no_grad()
def test_a_silenced_mlp_is_a_model_without_its_second_matrix(gpt: GPT) -> None:
    ids = random_ids(1, 6)
    with patch(gpt, {("mlp_key", 1): torch.zeros_like}):
        silenced = gpt(ids)
    gpt.get_parameter("blocks.1.mlp.down.weight").zero_()
    assert torch.equal(silenced, gpt(ids))


@torch.no_grad()
def test_patches_nest_and_the_outer_one_acts_first(gpt: GPT) -> None:
    ids, site = random_ids(1, 4), ("resid_post", 1)
    with patch(gpt, {site: lambda x: x * 0 + 1}), capture(gpt, [site]) as seen, patch(gpt, {site: lambda x: x * 3}):
        gpt(ids)
    assert seen[site].unique().tolist() == [1.0]


def test_gradients_flow_through_sites(gpt: GPT) -> None:
    ids = random_ids(1, 4)
    delta = torch.zeros(32, requires_grad=True)
    site = ("resid_post", 0)
    with patch(gpt, {site: lambda x: x + delta}), capture(gpt, [site]) as seen:
        seen_loss = gpt(ids)[0, -1, 5]
        at_site, at_delta = torch.autograd.grad(seen_loss, (seen[site], delta))
    # delta is added at every token, so its gradient is the sum over them
    torch.testing.assert_close(at_delta, at_site[0].sum(dim=0))
    assert at_delta.abs().max() > 0


class Stumble(Exception):
    pass


@torch.no_grad()
def test_hooks_are_gone_afterwards_whatever_happens(gpt: GPT) -> None:
    ids = random_ids(1, 4)
    before = gpt(ids)

    def stumble(x: Tensor) -> Tensor:
        raise Stumble

    with pytest.raises(Stumble), patch(gpt, {("mlp_out", 0): stumble}):
        gpt(ids)  # the patch itself fails
    with pytest.raises(Stumble), patch(gpt, {("mlp_out", 0): torch.zeros_like}):
        raise Stumble  # something else fails inside
    with pytest.raises(UserError), patch(gpt, {("mlp_out", 0): torch.zeros_like, ("mlp_out", 9): torch.zeros_like}):
        pass  # the second site does not exist, the first was already hooked
    assert not any(module._forward_hooks for module in gpt.modules())
    assert torch.equal(gpt(ids), before)


def test_sites_that_do_not_exist_are_named(gpt: GPT) -> None:
    with pytest.raises(UserError, match='no site "mlp_in"; the sites are resid_pre'), capture(gpt, [("mlp_in", 0)]):
        pass
    with pytest.raises(UserError, match="no layer 2; the model has layers 0 to 1"), capture(gpt, [("mlp_key", 2)]):
        pass
    with pytest.raises(UserError, match="no layer -1"), capture(gpt, [("mlp_key", -1)]):
        pass


# Weights


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_the_number_of_parameters_by_formula() -> None:
    # GPT-2: V D + T D + L (12 D² + 13 D) + 2 D: per layer 3 D² + 3 D for qkv, D² + D out, 8 D² + 5 D for the MLP and
    # 4 D for two norms; with V = 300, T = 64, D = 32, L = 2.
    assert parameters(GPT(tiny_config("gpt2"))) == 300 * 32 + 64 * 32 + 2 * (12 * 32**2 + 13 * 32) + 2 * 32 == 37_120
    # Llama: 2 V D + L (D (Hq + 2 Hkv) E + Hq E D + 3 D F + 2 D) + D; with Hq = 4, Hkv = 2, E = 8, F = 48.
    per_layer = 32 * (4 + 2 * 2) * 8 + 4 * 8 * 32 + 3 * 32 * 48 + 2 * 32
    assert parameters(GPT(tiny_config("llama"))) == 2 * 300 * 32 + 2 * per_layer + 32 == 34_720
    # GPT-2 124M, without its weights: 124,439,808 is the published number.
    with torch.device("meta"):
        gpt2 = GPT(GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768))
    assert parameters(gpt2) == 124_439_808


@FAMILIES
def test_weights_begin_as_gpt2s_do(family: str) -> None:
    config = replace(tiny_config(family), n_layer=3, n_embd=64, n_head=4, mlp_dim=128)
    for name, weight in GPT(config, seed=0).named_parameters():
        if name == "positions.weight":
            continue  # see below
        if name.endswith("bias"):
            assert not weight.any(), name
        elif weight.dim() == 1:
            assert (weight == 1).all(), name
        else:
            # Normal(0, 0.02), and 0.02 / √(2 · 3) for what is added to the residual stream. The smallest matrix has
            # 4,096 entries: its mean is within 4 · 0.02 / 64 and its spread within 4 / √(2 · 4096) = 4.4%.
            spread = 0.02 / math.sqrt(6) if name.endswith(("attn.out.weight", "mlp.down.weight")) else 0.02
            assert weight.std().item() == pytest.approx(spread, rel=0.044), name
            assert abs(weight.mean().item()) < 4 * spread / math.sqrt(weight.numel()), name


def test_learned_positions_begin_as_sinusoids() -> None:
    # Width 4: frequencies 1 and 10000^(-1/2) = 0.01, two sines and two cosines of amplitude 0.03.
    positions = GPT(replace(tiny_config("gpt2"), n_embd=4, block_size=10), seed=0).get_parameter("positions.weight")
    at_7 = [0.03 * value for value in (math.sin(7), math.sin(0.07), math.cos(7), math.cos(0.07))]
    assert positions[7].tolist() == pytest.approx(at_7, abs=1e-7)
    # How alike two positions are is a matter of their distance alone.
    alike = positions @ positions.T
    assert alike.diagonal(offset=3).tolist() == pytest.approx([alike[0, 3].item()] * 7, abs=1e-8)


def test_the_seed_and_nothing_else_decides_the_weights() -> None:
    first = GPT(tiny_config("gpt2"), seed=3)
    torch.manual_seed(99)
    second, other = GPT(tiny_config("gpt2"), seed=3), GPT(tiny_config("gpt2"), seed=4)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert not torch.equal(first.embed.weight, other.embed.weight)


def test_a_tied_head_reads_with_the_embedding(gpt: GPT) -> None:
    assert gpt.head is None
    state = torch.randn(32)
    torch.testing.assert_close(gpt.logits(state), gpt.embed.weight @ state)
    untied = GPT(replace(gpt.config, tie_embeddings=False), seed=0)
    assert untied.head is not None
    torch.testing.assert_close(untied.logits(state), untied.head.weight @ state)


@torch.no_grad()
def test_dropout_acts_only_where_asked_and_only_in_training() -> None:
    ids = random_ids(1, 8)
    plain = bold(tiny_config("gpt2"))
    assert torch.equal(plain.train()(ids), plain.eval()(ids))
    noisy = GPT(replace(plain.config, dropout=0.5))
    noisy.load_state_dict(plain.state_dict())
    assert torch.equal(noisy.eval()(ids), plain(ids))
    noisy.train()
    assert (noisy(ids) - plain(ids)).abs().max() > 0.1
    assert not torch.equal(noisy(ids), noisy(ids))


# Configs


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="n_embd 30 is not a multiple of n_head 4"):
        GPTConfig(vocab_size=10, block_size=8, n_layer=1, n_head=4, n_embd=30)
    with pytest.raises(UserError, match="n_head 4 is not a multiple of n_kv_head 3"):
        GPTConfig(vocab_size=10, block_size=8, n_layer=1, n_head=4, n_embd=32, n_kv_head=3)


def test_sizes_that_are_left_out_follow_from_the_others() -> None:
    config = GPTConfig(vocab_size=10, block_size=8, n_layer=1, n_head=4, n_embd=32)
    assert (config.kv_heads, config.head_size, config.mlp_size) == (4, 8, 128)
    odd = GPTConfig(vocab_size=10, block_size=8, n_layer=1, n_head=4, n_embd=30, head_dim=6, n_kv_head=1, mlp_dim=7)
    assert (odd.kv_heads, odd.head_size, odd.mlp_size) == (1, 6, 7)
    assert GPT(odd, seed=0)(torch.tensor([[1, 2]])).shape == (1, 2, 10)  # a head width of its own
