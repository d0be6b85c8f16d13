"""A batch that is open: rows of different settings, that come and go between steps, against the simple loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from engine_twin import STOPS, bold, prompts_of, simple
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_edit.engine.batch import Batch, look_at_prompt
from nanogpt_edit.engine.completion import Fresh, Request
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.gpt import GPT

PROMPTS = prompts_of(1, 7, 3, 12)
SETTINGS = (
    Sampling(temperature=0, max_new_tokens=12),
    Sampling(temperature=1.0, top_k=None, max_new_tokens=9, seed=1),
    Sampling(temperature=0.7, top_k=5, max_new_tokens=14, seed=2),
    Sampling(temperature=1.3, top_k=20, top_p=0.8, max_new_tokens=11, seed=3),
)
FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])


def request(number: int, *, alternatives: int | None = None) -> Request:
    """Of many kinds, by number; no two share a prompt."""
    prompt, stops = PROMPTS[number % 4], STOPS if number % 3 else frozenset[int]()
    return Request(number, number % 2, number, prompt, SETTINGS[number % 3 + number // 7 % 2], stops, alternatives)


@cache
def expected_of(family: str, number: int) -> tuple[int, ...]:
    return expected(bold(family), request(number))


def expected(model: GPT, each: Request) -> tuple[int, ...]:
    sampling, key, sample = each.sampling, each.prompt_key, each.sample_index
    return simple(model, each.prompt, key=key, sample=sample, sampling=sampling, stops=each.stop_ids).token_ids


def opened(model: GPT, *, slots: int) -> Batch:
    return Engine(model, max_slots=slots).open(slots, new_tokens=20, longest_prompt=12)


@torch.inference_mode()
def run(batch: Batch, coming: Sequence[Sequence[Request]], leaving: dict[int, Request] | None = None) -> list[Fresh]:
    """All tokens, in the order in which they are told; `coming` and `leaving` are by step."""
    told: list[Fresh] = []
    waiting: list[Request] = []
    step = 0
    while step < len(coming) or waiting or batch.rows:
        waiting += coming[step] if step < len(coming) else []
        if leaving and step in leaving:
            batch.cancel([leaving[step]])
            assert leaving[step] not in batch.requests
        now, waiting = waiting[: batch.free], waiting[batch.free :]
        if now:
            batch.admit(now)
            told += batch.fresh()
        list(batch.step(refill=bool(waiting)))
        told += batch.fresh()
        step += 1
    return told


@FAMILIES
@settings(max_examples=10)
@given(plan=st.lists(st.lists(st.integers(0, 14), max_size=3, unique=True), max_size=8), slots=st.integers(1, 6))
def test_each_row_writes_what_it_would_alone(family: str, plan: list[list[int]], slots: int) -> None:
    model = bold(family)
    coming = [[request(number) for number in numbers] for numbers in plan]
    written: dict[Request, list[int]] = defaultdict(list)
    for fresh in run(opened(model, slots=slots), coming):
        assert not written[fresh.request] or written[fresh.request][-1] not in fresh.request.stop_ids
        written[fresh.request].append(fresh.token_id)
        ended = tuple(written[fresh.request]) == expected_of(family, fresh.request.prompt_index)
        assert (fresh.finish_reason is not None) == ended
    for each in (each for some in coming for each in some):
        assert tuple(written[each]) == expected_of(family, each.prompt_index)


def test_a_row_that_is_taken_back_leaves_at_once_and_the_others_do_not_notice() -> None:
    model, rows = bold("gpt2"), [request(number) for number in (1, 2, 4, 5)]
    written: dict[Request, list[int]] = defaultdict(list)
    for fresh in run(opened(model, slots=4), [rows], {2: rows[1]}):
        written[fresh.request].append(fresh.token_id)
    assert len(written[rows[1]]) <= 3 < len(expected(model, rows[1])) or len(expected(model, rows[1])) <= 3
    for each in (rows[0], *rows[2:]):
        assert tuple(written[each]) == expected(model, each)


def test_a_batch_of_which_every_row_is_taken_back_goes_on() -> None:
    model, rows = bold("llama"), [request(number) for number in (1, 2, 4)]
    batch = opened(model, slots=2)
    with torch.inference_mode():
        batch.admit(rows[:2])
        batch.cancel(rows[:2])
    assert (batch.rows, batch.free) == (0, 2)
    told = run(batch, [[rows[2]]])
    assert tuple(each.token_id for each in told) == expected(model, rows[2])


@FAMILIES
def test_what_is_told_of_a_token_is_the_plain_softmax(family: str) -> None:
    """Whatever temperature it is drawn at, and beside rows of which nothing is told."""
    model = bold(family)
    looked, plain = request(2, alternatives=3), request(5)
    told = [each for each in run(opened(model, slots=2), [[plain, looked]]) if each.request is looked]
    assert all(each.look is not None for each in told)
    ids = [*looked.prompt, *(each.token_id for each in told)]
    logprobs = model(torch.tensor([ids])).detach()[0].log_softmax(-1)
    for place, each in enumerate(told, start=len(looked.prompt) - 1):
        assert each.look is not None
        best = logprobs[place].topk(3)
        assert each.look.logprob == pytest.approx(float(logprobs[place, each.token_id]), abs=1e-4)
        assert each.look.top_ids == tuple(best.indices.tolist())
        assert each.look.top_logprobs == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_prompt_is_looked_at_token_by_token() -> None:
    model, prompt = bold("gpt2"), prompts_of(9)[0]
    looks = look_at_prompt(model, prompt, alternatives=2)
    logprobs = model(torch.tensor([prompt])).detach()[0].log_softmax(-1)
    assert [each.logprob for each in looks] == pytest.approx(
        [float(logprobs[place, token]) for place, token in enumerate(prompt[1:])], abs=1e-4
    )
    assert [each.top_ids for each in looks] == [tuple(row.topk(2).indices.tolist()) for row in logprobs[:-1]]


def test_rows_may_share_a_prompt_and_differ_in_settings() -> None:
    model = bold("llama")
    rows = [replace(request(3), prompt_index=0, sampling=sampling) for sampling in SETTINGS]
    written: dict[Request, list[int]] = defaultdict(list)
    for fresh in run(opened(model, slots=4), [rows]):
        written[fresh.request].append(fresh.token_id)
    assert all(tuple(written[each]) == expected(model, each) for each in rows)


@torch.inference_mode()
def test_prompts_wait_for_memory() -> None:
    """Prompts of 1, 7, 3 and 12 tokens, padded to the longest, in memory for 24 tokens."""
    model = bold("gpt2")
    token_bytes = 2 * model.config.n_layer * model.config.n_embd * 4
    own = Engine(model).open(6, new_tokens=20, longest_prompt=12).cache.nbytes
    batch = Engine(model, cache_bytes=own + 24 * token_bytes).open(6, new_tokens=20, longest_prompt=4)
    short, middle, long = (request(number) for number in (0, 1, 3))
    assert batch.slots == 6
    assert batch.room_for([short, middle]) == 2  # 2 × 7
    assert batch.room_for([short, middle, request(4), request(5)]) == 3  # 4 × 7 are too many
    assert batch.room_for([long, short]) == 2  # 2 × 12
    assert batch.room_for([short, middle, long]) == 2
    batch.admit([short, middle])
    assert batch.room_for([replace(middle, sample_index=5)] * 9) == 4  # the prompt is there already
    assert batch.room_for([long]) == 0
    batch.cancel([middle])
    assert batch.room_for([long]) == 1
    batch.cancel([short])
    tight = Engine(model, cache_bytes=own).open(6, new_tokens=20, longest_prompt=0)
    assert tight.room_for([long, short]) == 1
