"""Products of few rows with large matrices, taken another way round, are the same products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.engine import engine
from nanogpt_edit.engine.packed_weights import PackedWeights
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model import head, linear
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.head import VOCABULARY_BLOCK, head_product
from nanogpt_edit.model.kv_cache import KVCache
from nanogpt_edit.model.linear import (
    FEW_ROWS,
    LARGE_LAYER,
    LARGE_MATRIX,
    Linear,
    Packed,
    columns_of,
    is_few,
    packed_is_faster,
    product_of,
    whole,
)


@pytest.mark.parametrize("shape", [(5, 2), (), (0,), (16,), (3, 7)])
def test_blocks_of_the_vocabulary_give_the_same_logits(shape: tuple[int, ...]) -> None:
    states, weight = torch.randn(*shape, 160), torch.randn(2 * VOCABULARY_BLOCK + 3, 160)
    with torch.no_grad():
        assert is_few(states, weight)
        torch.testing.assert_close(head_product(states, weight), states @ weight.T)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5), (7, 1), (1, 0), (16,), (3, 9)])
def test_few_rows_give_the_same_sums(bias: bool, shape: tuple[int, ...]) -> None:
    layer, x = Linear(1024, LARGE_LAYER // 1024, bias=bias), torch.randn(*shape, 1024)
    expected = layer(x)  # with gradient: the usual way
    with torch.no_grad():
        assert is_few(x, layer.weight)
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


def test_when_the_usual_way_is_taken() -> None:
    rows = LARGE_MATRIX // 256
    large, small, x = torch.zeros(rows, 256), torch.zeros(rows - 1, 256), torch.zeros(FEW_ROWS, 256)
    assert not is_few(x, large)  # a gradient may be wanted
    with torch.no_grad():
        assert is_few(x, large)
        assert is_few(x.view(2, -1, 256), large)
        assert not is_few(torch.zeros(FEW_ROWS + 1, 256), large)
        assert not is_few(x, small)
        assert not is_few(x.double(), large.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not is_few(x, large)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_models_steps_are_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where keys and values go into a cache, and where the rows have one token or several."""
    model = GPT(replace(tiny_config(family), n_embd=64), seed=0).eval()
    token_ids = torch.randint(0, 300, (3, 8), generator=torch.Generator().manual_seed(0))

    def logits() -> torch.Tensor:
        cache = KVCache(model.config, rows=3, capacity=8, device="cpu", dtype=torch.float32)
        with torch.no_grad():
            return torch.cat([model(part, view=cache) for part in token_ids.split((5, 1, 1, 1), dim=1)], dim=1)

    expected = logits()
    monkeypatch.setattr(linear, "LARGE_MATRIX", 0)
    monkeypatch.setattr(linear, "LARGE_LAYER", 0)
    monkeypatch.setattr(head, "VOCABULARY_BLOCK", 100)
    torch.testing.assert_close(logits(), expected, atol=1e-5, rtol=1e-4)
    with PackedWeights(model, max_bytes=2**20).used():
        torch.testing.assert_close(logits(), expected, atol=1e-5, rtol=1e-4)


WITH_ONEDNN = pytest.mark.skipif(not Packed.is_possible(), reason="torch is built without oneDNN here")


@WITH_ONEDNN
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5), (7, 1), (1, 0), (30,), (255, 1)])
def test_a_packed_copy_gives_the_same_sums(bias: bool, shape: tuple[int, ...]) -> None:
    layer, x = Linear(24, 50, bias=bias), torch.randn(*shape, 24)
    packed = Packed(layer.weight)
    expected = layer(x).detach()
    torch.testing.assert_close(packed(x, layer.bias), expected)
    if x.dim() > 1:
        torch.testing.assert_close(packed(x.mT.contiguous().mT, layer.bias), expected)  # however x lies in memory
    layer.weight.data.mul_(2)
    torch.testing.assert_close(packed(x, layer.bias), expected)  # the copy stays what it was


@given(st.integers(1, 20_000))
def test_rows_are_filled_up_to_one_of_few_numbers(rows: int) -> None:
    size = whole(rows)
    assert size >= rows and size % 8 == 0 and whole(size) == size
    assert size - rows < max(8, rows / 8)
    assert len({whole(each) for each in range(2**10, 2**11)}) <= 17


def test_numbers_of_rows_by_hand() -> None:
    assert [whole(rows) for rows in (1, 8, 9, 127, 128, 129, 300, 1503)] == [8, 8, 16, 128, 128, 136, 304, 1536]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (2, 5), (3, 13), (0,), (64,)])
def test_products_in_bfloat16_and_their_gradients_are_those_of_autocast(bias: bool, shape: tuple[int, ...]) -> None:
    layer = Linear(24, 50, bias=bias)
    x = torch.randn(*shape, 24, generator=torch.Generator().manual_seed(1))
    towards = torch.randn(*shape, 50, generator=torch.Generator().manual_seed(2))

    def found(product: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = product(given, layer.weight, layer.bias)
            (y.float() * towards).sum().backward()
        grads = [given.grad, *(parameter.grad for parameter in layer.parameters())]
        layer.zero_grad(set_to_none=True)
        return [y, *(grad for grad in grads if grad is not None)]

    expected, ours = found(F.linear), found(product_of)
    assert [each.dtype for each in ours] == [each.dtype for each in expected]
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.05, rtol=2e-2)


IN_BFLOAT16 = pytest.mark.skipif(not Packed.is_possible(torch.bfloat16), reason="no bfloat16 products on this CPU")


@IN_BFLOAT16
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_packed_copies_in_bfloat16_are_what_autocast_computes(family: str) -> None:
    """Of every matrix, however small, for one row and for several; and nothing is left behind."""
    model = GPT(replace(tiny_config(family), n_embd=64), seed=0).eval()
    token_ids = torch.randint(0, 300, (3, 8), generator=torch.Generator().manual_seed(0))
    every = [layer for layer in model.modules() if isinstance(layer, Linear)]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected, alone = model(token_ids), model(token_ids[:1, :1])
        assert expected.dtype == torch.bfloat16
        weights = PackedWeights(model, max_bytes=2**20)
        assert set(weights.layers) == set(every)
        with weights.used():
            packed, packed_alone = model(token_ids), model(token_ids[:1, :1])
        assert all(copy._copy is not None for copy in weights.layers.values())
        assert torch.equal(model(token_ids), expected)
    assert packed.dtype == torch.bfloat16
    spread = float(expected.float().std())
    torch.testing.assert_close(packed, expected, atol=0.02 * spread, rtol=2e-2)
    torch.testing.assert_close(packed_alone, alone, atol=0.02 * spread, rtol=2e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        size = 2 * sum(weight.numel() for weight in (model.head_weight, *(layer.weight for layer in every)))
        assert PackedWeights(model, max_bytes=size).head is not None
        assert PackedWeights(model, max_bytes=size - 1).head is None


@IN_BFLOAT16
def test_a_compiler_sees_neither_copies_nor_whole_rows() -> None:
    """It has ways of its own, and none for oneDNN's operators; a number of rows is no reason to compile anew."""
    model, graphs = GPT(tiny_config("llama"), seed=0).eval(), list[str]()

    def record(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(str(graph.code))
        return graph.forward

    layer = model.blocks[0].mlp.up
    compiled = torch.compile(layer, backend=record, dynamic=True)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), PackedWeights(model, max_bytes=2**20).used():
        for rows in (17, 33, 70):
            x = torch.ones(rows, model.config.n_embd)
            torch.testing.assert_close(compiled(x), layer(x), atol=0.02, rtol=2e-2)
    assert len(graphs) == 1
    assert "mkldnn" not in graphs[0] and "new_empty" not in graphs[0]


@WITH_ONEDNN
def test_copies_are_used_inside_only_and_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "LARGE_MATRIX", 0)
    monkeypatch.setattr(linear, "LARGE_LAYER", 0)
    model = GPT(tiny_config("gpt2"), seed=0).eval()
    x = torch.ones(2, model.config.n_embd)
    layer = model.blocks[0].mlp.up
    size = sum(w.nbytes for name, w in model.named_parameters() if w.dim() == 2 and "positions" not in name)
    weights = PackedWeights(model, max_bytes=size)
    with torch.no_grad():
        before = layer(x)
        with weights.used():
            torch.testing.assert_close(layer(x), before)
            layer.weight.zero_()
            torch.testing.assert_close(layer(x), before)  # from the copy
            assert model.packed_head is not None
            torch.testing.assert_close(layer(x[:1]), layer(x[:1] * 0))  # one row takes the weights themselves
        assert torch.equal(layer(x)[0], layer.bias)
        assert model.packed_head is None
    with PackedWeights(model, max_bytes=size - 1).used():
        assert (layer.packed, model.packed_head) == (None, None)


@WITH_ONEDNN
def test_the_engine_writes_the_same_text_with_packed_weights_and_sees_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(replace(tiny_config("llama"), n_embd=64), seed=0).eval()
    sampling = Sampling(max_new_tokens=engine.PACKING_PAYS)

    def texts() -> list[tuple[int, ...]]:
        made = engine.Engine(model).generate([[1, 2, 3], [4, 5]], n=2, sampling=sampling)
        return [completion.token_ids for completion in made]

    plain = texts()
    monkeypatch.setattr(linear, "LARGE_MATRIX", 0)
    monkeypatch.setattr(linear, "LARGE_LAYER", 0)
    made, init = list[Packed](), Packed.__init__
    monkeypatch.setattr(
        Packed, "__init__", lambda self, *given, **named: made.append(self) or init(self, *given, **named)
    )
    assert texts() == plain
    assert len(made) > 2
    assert all(packed._copy is not None for packed in made)
    with torch.no_grad():
        model.head_weight.mul_(-1)
    assert texts() != plain


def test_which_way_is_faster() -> None:
    assert [rows for rows in (1, 16, 63, 64, 65, 79, 80, 128, 255, 256) if not packed_is_faster(rows)] == [
        1,
        64,
        80,
        128,
        256,
    ]


def test_columns_fill_the_kernel_where_many_would_be_left_over() -> None:
    for rows, columns in ((0, 0), (1, 1), (8, 8), (9, 16), (16, 16), (17, 32), (63, 64)):
        made = columns_of(torch.ones(rows, 3))
        assert made.shape == (3, columns)
        assert made.sum() == 3 * rows
