"""Rows in slots, as a GPU has them, against the simple loop; here the steps run one by one instead of recorded."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from engine_twin import STOPS, Text, assert_same, bold, prompts_of, simple

from nanogpt_edit.common.device import autocast
from nanogpt_edit.engine import slots
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling

PROMPTS = prompts_of(1, 7, 3, 7, 40, 2)
FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])
SAMPLINGS = pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, max_new_tokens=12),
        Sampling(temperature=1.0, top_k=None, max_new_tokens=30, seed=1),
        Sampling(temperature=1.3, top_k=20, top_p=0.8, max_new_tokens=12, seed=3),
    ],
    ids=["greedy", "full", "top-p"],
)


@FAMILIES
@SAMPLINGS
@pytest.mark.parametrize("max_slots", [1, 3, 64])
def test_every_token_is_that_of_the_simple_loop(
    family: str, sampling: Sampling, max_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots are refilled, ranks closed, and the cache read in pieces of 16 columns."""
    monkeypatch.setattr(slots, "COLUMNS", 16)
    monkeypatch.setattr(slots, "FEWEST_ROWS", 2)
    engine = Engine(bold(family), max_slots=max_slots, in_slots=True)
    for _ in range(2):  # again in the slots that are there
        completions = engine.generate(PROMPTS, n=3, sampling=sampling, stop_ids=STOPS)
        assert [(each.prompt_index, each.sample_index) for each in completions] == [
            (prompt, sample) for prompt in range(6) for sample in range(3)
        ]
        for found in completions:
            assert_same(found, expected(family, sampling, found.prompt_index, found.sample_index))


@cache
def expected(family: str, sampling: Sampling, prompt: int, sample: int) -> Text:
    """What the simple loop writes after one of the prompts; made once for all tests."""
    return simple(bold(family), PROMPTS[prompt], key=prompt, sample=sample, sampling=sampling)


def test_slots_serve_calls_that_fit_in_them_and_grow_for_others() -> None:
    engine, prompts = Engine(bold("llama"), in_slots=True), prompts_of(3, 5)
    short, long = (Sampling(temperature=1.0, max_new_tokens=tokens) for tokens in (4, 20))
    first = engine.generate(prompts, n=2, sampling=long)
    kept = engine._slots
    assert engine.generate(prompts[:1], sampling=short)[0].token_ids == first[0].token_ids[:4]
    assert engine._slots is kept
    engine.generate(prompts, n=9, sampling=long)
    assert engine._slots is not kept


def test_a_call_that_is_left_early_leaves_nothing_to_the_next() -> None:
    engine, prompts = Engine(bold("gpt2"), in_slots=True), prompts_of(3, 5, 4)
    sampling = Sampling(temperature=1.0, max_new_tokens=20)
    stream = engine.stream(prompts, n=4, sampling=sampling, stop_ids=STOPS)
    next(stream)
    stream.close()
    for found in engine.generate(prompts, sampling=sampling):
        assert_same(found, simple(bold("gpt2"), prompts[found.prompt_index], key=found.prompt_index, sample=0,
                                  sampling=sampling, stops=frozenset()))  # fmt: skip


@FAMILIES
def test_products_in_bfloat16_take_copies_of_the_weights_as_they_are_now(family: str) -> None:
    """Under autocast the weights stay in float32; what is written follows them when they change."""
    model = bold(family)
    sampling = Sampling(temperature=1.0, top_k=None, max_new_tokens=20, seed=3)
    engine = Engine(model, in_slots=True)
    with autocast(torch.device("cpu"), "bfloat16"), torch.no_grad():
        before = engine.generate(prompts_of(4, 9), n=2, sampling=sampling)
        for found in before:
            ids = torch.tensor([[*prompts_of(4, 9)[found.prompt_index], *found.token_ids]])
            every = model(ids)[0, -len(found.token_ids) - 1 : -1].float().log_softmax(-1)
            own = every.gather(1, ids[0, -len(found.token_ids) :, None])[:, 0]
            assert (own - torch.tensor(found.logprobs)).abs().max() < 0.3
        for weight in model.parameters():
            weight.mul_(1.5)
        try:
            assert engine.generate(prompts_of(4, 9), n=2, sampling=sampling) != before
        finally:
            for weight in model.parameters():
                weight.div_(1.5)
    assert all(layer.cast is None for layer in engine._slots.weights.layers) if engine._slots else False


def test_shapes_are_few() -> None:
    assert [slots.shape_of(rows, least=8, most=100) for rows in (1, 8, 9, 17, 64, 65, 100)] == [
        8,
        8,
        16,
        32,
        64,
        100,
        100,
    ]
