"""The engine against the obvious loop: one row, no cache, one token at a time. Everything else is only faster."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import tiny_config
from engine_twin import STOPS, Text, assert_same, bold, prompts_of, simple
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.engine import decode_cache, prefill
from nanogpt_edit.engine import engine as engine_module
from nanogpt_edit.engine.batch import Batch
from nanogpt_edit.engine.decode_cache import DecodeCache
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import RestrictedSampling, Sampling
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache
from nanogpt_edit.model.tokenizer import Tokenizer

FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])


class Watch:
    """Counts what goes through a model: the rows of each decode step, the prompts of each prefill."""

    def __init__(self, model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded: list[int] = []
        self.prefilled: list[int] = []
        inner = model.hidden

        def hidden(token_ids: Tensor, *, view: KVCache | None = None, **others: Tensor) -> Tensor:
            decoding = isinstance(view, DecodeCache)
            (self.decoded if decoding else self.prefilled).append(len(token_ids))
            return inner(token_ids, view=view, **others)

        monkeypatch.setattr(model, "hidden", hidden)


# The same text as the simple loop


@FAMILIES
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, max_new_tokens=12),
        Sampling(temperature=1.0, top_k=None, max_new_tokens=12, seed=1),
        Sampling(temperature=0.7, top_k=5, max_new_tokens=12, seed=2),
        Sampling(temperature=1.3, top_k=20, top_p=0.8, max_new_tokens=12, seed=3),
    ],
    ids=["greedy", "full", "top-k", "top-p"],
)
def test_every_token_is_that_of_the_simple_loop(family: str, sampling: Sampling) -> None:
    model, prompts = bold(family), prompts_of(1, 7, 3)
    completions = Engine(model).generate(prompts, n=3, sampling=sampling, stop_ids=STOPS)
    assert [(c.prompt_index, c.sample_index) for c in completions] == [(p, s) for p in range(3) for s in range(3)]
    for c in completions:
        expected = simple(model, prompts[c.prompt_index], key=c.prompt_index, sample=c.sample_index, sampling=sampling)
        assert_same(c, expected)
    samples = {c.token_ids for c in completions if c.prompt_index == 1}
    assert len(samples) == (1 if sampling.temperature == 0 else 3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_tokens_are_never_drawn(temperature: float) -> None:
    """What the model would write without the ban is banned; the others share its probability."""
    model, prompts = bold("llama"), prompts_of(2, 6)
    sampling = RestrictedSampling(temperature=temperature, top_k=5, max_new_tokens=12, seed=4)
    banned = frozenset(Engine(model).generate(prompts, sampling=sampling)[0].token_ids)
    found = Engine(model).generate(prompts, sampling=replace(sampling, banned_ids=tuple(banned)))
    assert not banned & {token for c in found for token in c.token_ids}
    logits = model(torch.tensor([prompts[0]]))[:, -1].detach() / (temperature or 1)
    logits[:, list(banned)] = -torch.inf
    assert found[0].logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[0, found[0].token_ids[0]]), abs=1e-4)


POOL = [tuple(prompt) for prompt in prompts_of(1, 2, 3, 5, 8, 13, 8)]
KEYS = [11, 3, 2**31, 0, 77, 5, 123_456]


@cache
def expected_text(family: str, prompt: int, sample: int, max_new_tokens: int) -> Text:
    sampling = Sampling(temperature=1.0, top_k=30, max_new_tokens=max_new_tokens, seed=9)
    return simple(bold(family), POOL[prompt], key=KEYS[prompt], sample=sample, sampling=sampling)


@FAMILIES
@settings(max_examples=25)
@given(
    chosen=st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=7, unique=True),
    n=st.integers(1, 4),
    slots=st.integers(1, 12),
    affordable_rows=st.sampled_from([0, 1, 2, 5, 1000]),
    slack=st.sampled_from([0, 1, 5, 64]),
    prefill_tokens=st.sampled_from([1, 20, 1000]),
    span=st.sampled_from([1, 3, 64]),
    max_new_tokens=st.sampled_from([1, 2, 17]),
)
def test_the_text_depends_on_the_prompt_and_its_key_alone(
    family: str,
    chosen: list[int],
    n: int,
    slots: int,
    affordable_rows: int,
    slack: int,
    prefill_tokens: int,
    span: int,
    max_new_tokens: int,
) -> None:
    """Not on slots, number of samples, order, company, cache memory, or how prompts and columns are batched."""
    model = bold(family)
    row_bytes = KVCache.row_bytes(model.config, capacity=max_new_tokens + 64 + 13, dtype=torch.float32)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(engine_module, "SLACK_COLUMNS", slack)
        monkeypatch.setattr(prefill, "PREFILL_TOKENS", prefill_tokens)
        monkeypatch.setattr(prefill, "ENOUGH_TOKENS", prefill_tokens)
        monkeypatch.setattr(decode_cache, "SPAN_COLUMNS", span)
        completions = Engine(model, max_slots=slots, cache_bytes=affordable_rows * row_bytes).generate(
            [POOL[i] for i in chosen],
            n=n,
            sampling=Sampling(temperature=1.0, top_k=30, max_new_tokens=max_new_tokens, seed=9),
            stop_ids=STOPS,
            prompt_keys=[KEYS[i] for i in chosen],
        )
    assert len(completions) == len(chosen) * n
    for c in completions:
        assert_same(c, expected_text(family, chosen[c.prompt_index], c.sample_index, max_new_tokens))


@FAMILIES
def test_a_long_run_moves_its_columns_and_keeps_its_text(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bold(family, block_size=64)
    monkeypatch.setattr(engine_module, "SLACK_COLUMNS", 8)
    monkeypatch.setattr(decode_cache, "SPAN_COLUMNS", 5)
    moved: list[int] = []
    forget = DecodeCache.forget_columns

    def forget_and_count(self: DecodeCache, columns: int) -> None:
        moved.append(columns)
        forget(self, columns)

    monkeypatch.setattr(DecodeCache, "forget_columns", forget_and_count)
    prompts = prompts_of(3, 9, 1, 5, 2, 7, 4, 6)
    sampling = Sampling(temperature=1.0, top_k=None, max_new_tokens=40, seed=4)
    stops = frozenset({0})  # one of forty: many completions reach the limit
    completions = Engine(model, max_slots=2).generate(prompts, n=2, sampling=sampling, stop_ids=stops)
    assert len(moved) >= 3
    assert min(moved) > 0
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for c in completions[1::5]:
        prompt = prompts[c.prompt_index]
        key, sample = c.prompt_index, c.sample_index
        assert_same(c, simple(model, prompt, key=key, sample=sample, sampling=sampling, stops=stops))


def test_prompts_of_like_length_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """8, 8 and 9 tokens need 2 of padding, an eighth of 16; with 20 it would be 35."""
    monkeypatch.setattr(prefill, "ENOUGH_TOKENS", 16)
    prompts = {0: [1] * 8, 1: [1] * 20, 2: [1] * 9, 3: [1] * 8}
    assert list(prefill.parts_of_like_length(prompts, torch.device("cpu"))) == [[0, 3, 2], [1]]
    assert list(prefill.parts_of_like_length(prompts, torch.device("cuda"))) == [[0, 3, 2, 1]]


def test_equal_prompts_with_equal_keys_get_equal_texts() -> None:
    prompt = prompts_of(4)[0]
    sampling = Sampling(temperature=1.0, max_new_tokens=10)
    same = Engine(bold("gpt2")).generate([prompt, prompt], sampling=sampling, prompt_keys=[5, 5])
    assert same[0].token_ids == same[1].token_ids
    by_position = Engine(bold("gpt2")).generate([prompt, prompt], sampling=sampling)
    assert by_position[0].token_ids != by_position[1].token_ids


def test_in_bfloat16_the_logprobs_are_near_those_of_float32() -> None:
    model = GPT(bold("llama").config)
    model.load_state_dict(bold("llama").state_dict())
    sampling, prompts = Sampling(temperature=1.0, top_k=None, max_new_tokens=1), prompts_of(6, 2, 9)
    exact = Engine(model).generate(prompts, n=4, sampling=sampling)
    rounded = Engine(model.to(torch.bfloat16)).generate(prompts, n=4, sampling=sampling)
    agree = [(a, b) for a, b in zip(exact, rounded, strict=True) if a.token_ids == b.token_ids]
    assert len(agree) >= 8
    for a, b in agree:
        assert a.logprobs == pytest.approx(b.logprobs, abs=0.2)


# Ends


def test_a_stop_token_ends_a_completion_and_is_part_of_it() -> None:
    completions = Engine(bold("gpt2")).generate(
        prompts_of(3, 5), n=8, sampling=Sampling(temperature=1.0, max_new_tokens=20), stop_ids=STOPS
    )
    for c in completions:
        *before, last = c.token_ids
        assert not STOPS & set(before)
        assert (last in STOPS) == (c.finish_reason == "stop")
        assert len(c.token_ids) == len(c.logprobs) <= 20
        assert c.finish_reason == "stop" or len(c.token_ids) == 20
    assert {c.finish_reason for c in completions} == {"stop", "length"}


def test_prompt_and_completion_together_never_exceed_the_block_size() -> None:
    prompts = prompts_of(47, 40, 1)  # of 48
    completions = Engine(bold("llama")).generate(prompts, sampling=Sampling(temperature=1.0, max_new_tokens=1000))
    assert [len(c.token_ids) for c in completions] == [1, 8, 47]
    assert {c.finish_reason for c in completions} == {"length"}


def test_a_stop_on_the_last_allowed_token_is_a_stop() -> None:
    sampling = Sampling(temperature=0, max_new_tokens=5)
    prompt = prompts_of(3)[0]
    free = Engine(bold("gpt2")).generate([prompt], sampling=sampling)[0]
    last = free.token_ids[-1]
    assert last not in free.token_ids[:-1]
    stopped = Engine(bold("gpt2")).generate([prompt], sampling=sampling, stop_ids=frozenset({last}))[0]
    assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids, "stop")


def test_rows_of_the_embedding_without_a_token_are_never_drawn(tokenizer: Tokenizer) -> None:
    # As GPT-2: 50,304 rows, of which the last have no token.
    model = GPT(replace(tiny_config("gpt2", vocab_size=2 * tokenizer.vocab_size), tie_embeddings=False), seed=0)
    model.tokenizer = tokenizer
    sampling = Sampling(temperature=1.0, top_k=None, max_new_tokens=8)
    completions = Engine(model).generate([[1, 2]], n=20, sampling=sampling)
    assert max(i for c in completions for i in c.token_ids) < tokenizer.vocab_size
    # … and the log-probabilities are those among the tokens there are: about -log(300), not -log(600).
    first = sum(c.logprobs[0] for c in completions) / 20
    assert first == pytest.approx(-torch.tensor(float(tokenizer.vocab_size)).log().item(), abs=0.05)


# Scheduling


def test_slots_are_filled_again_and_each_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bold("gpt2")
    watch = Watch(model, monkeypatch)
    sampling = Sampling(temperature=1.0, max_new_tokens=20, seed=1)
    completions = Engine(model, max_slots=4).generate(prompts_of(3, 5, 2, 7, 4, 6), n=4, sampling=sampling)
    assert sum(watch.prefilled) == 6
    # 24 completions of 20 tokens in 4 slots; the first token of each comes from the prompt: 6 rounds of 19 steps.
    assert watch.decoded == [4] * 114
    watch.decoded.clear()
    completions = Engine(model, max_slots=4).generate(
        prompts_of(3, 5, 2, 7, 4, 6), n=4, sampling=sampling, stop_ids=STOPS
    )
    lengths = [len(c.token_ids) for c in completions]
    assert len(set(lengths)) > 5
    # All four slots work until nothing waits: the steps are those of the work, not of the longest of each four.
    assert sum(watch.decoded) == sum(lengths) - 24
    assert all(rows == 4 for rows in watch.decoded[: -max(lengths)])


def test_the_batch_shrinks_when_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bold("gpt2")
    watch = Watch(model, monkeypatch)
    completions = Engine(model).generate(
        prompts_of(5), n=32, sampling=Sampling(temperature=1.0, max_new_tokens=40), stop_ids=STOPS
    )
    assert watch.decoded == sorted(watch.decoded, reverse=True)
    assert len(watch.decoded) == max(len(c.token_ids) for c in completions) - 1
    # Finished rows leave once they are an eighth of the batch, so at most that share of the work is wasted.
    useful = sum(len(c.token_ids) - 1 for c in completions)
    assert useful <= sum(watch.decoded) <= useful * 8 / 7


def test_streaming_gives_each_completion_once_and_the_short_ones_first() -> None:
    prompts, sampling = prompts_of(3, 5), Sampling(temperature=1.0, max_new_tokens=30)
    engine = Engine(bold("gpt2"))
    streamed = list(engine.stream(prompts, n=4, sampling=sampling, stop_ids=STOPS))
    assert Counter((c.prompt_index, c.sample_index) for c in streamed) == Counter(
        (p, s) for p in range(2) for s in range(4)
    )
    lengths = [len(c.token_ids) for c in streamed]
    assert lengths != [len(c.token_ids) for c in engine.generate(prompts, n=4, sampling=sampling, stop_ids=STOPS)]
    assert lengths == sorted(lengths)


def test_a_stream_that_is_left_early_does_no_harm() -> None:
    model = bold("gpt2").train()
    prompts, sampling = prompts_of(3, 5, 2), Sampling(temperature=1.0, max_new_tokens=30)
    engine = Engine(model, max_slots=2)
    complete = engine.generate(prompts, n=2, sampling=sampling, stop_ids=STOPS)
    stream = engine.stream(prompts, n=2, sampling=sampling, stop_ids=STOPS)
    next(stream)
    assert not model.training
    stream.close()
    assert model.training  # as it was found
    assert engine.generate(prompts, n=2, sampling=sampling, stop_ids=STOPS) == complete
    model.eval()


# Memory


@FAMILIES
def test_memory_is_what_the_formula_says(family: str) -> None:
    model = bold(family)
    engine = Engine(model, max_slots=6)
    engine.generate(prompts_of(10, 4), n=3, sampling=Sampling(temperature=1.0, max_new_tokens=16))
    cache = engine._cache
    assert cache is not None
    # 2 (keys, values) × 2 layers × heads × width 4 × 4 bytes = 64 · heads bytes per token.
    token_bytes = 64 * {"gpt2": 4, "llama": 2}[family]
    assert cache.nbytes == 6 * (16 + 64) * token_bytes  # six rows of the new tokens and the slack
    assert cache.keys.untyped_storage().nbytes() * 2 == cache.nbytes


def test_the_limit_on_cache_memory_holds_for_rows_and_prompts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, most = bold("gpt2"), 0
    step = Batch.step

    def measure(self, *, refill: bool):  # type: ignore[no-untyped-def]
        nonlocal most
        most = max(most, self.cache.nbytes + self.cache.prompt_keys.nbytes + self.cache.prompt_values.nbytes)
        return step(self, refill=refill)

    monkeypatch.setattr(Batch, "step", measure)
    # 256 bytes per token: a row of 10 + 64 new tokens and a prompt of 26 takes 25,600.
    watch = Watch(model, monkeypatch)
    engine = Engine(model, cache_bytes=100_000)
    short, long = prompts_of(6, 6, 6, 6, 6, 6), prompts_of(26, 26, 26, 26, 26, 26)
    sampling = Sampling(temperature=1.0, max_new_tokens=10)
    engine.generate(short, sampling=sampling)  # 20,480 bytes each: four rows
    assert set(watch.decoded) == {4, 2}
    watch.decoded.clear()
    engine.generate(long, sampling=sampling)  # three rows, although the cache for four is still there
    assert set(watch.decoded) == {3}
    assert 75_000 < most <= 100_000


def test_without_a_bound_the_cache_may_take_a_quarter_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sampling = bold("gpt2"), Sampling(temperature=1.0, max_new_tokens=10)
    monkeypatch.setattr("nanogpt_edit.engine.engine.machine_bytes", lambda: 400_000)
    watch = Watch(model, monkeypatch)
    Engine(model).generate(prompts_of(6, 6, 6, 6, 6, 6), sampling=sampling)  # 20,480 bytes each
    assert set(watch.decoded) == {4, 2}


def test_one_row_runs_however_little_memory_there_is() -> None:
    completions = Engine(bold("gpt2"), cache_bytes=1).generate(
        prompts_of(3, 4), n=2, sampling=Sampling(temperature=1.0, max_new_tokens=3)
    )
    assert [len(c.token_ids) for c in completions] == [3, 3, 3, 3]


# One engine, many calls


def test_an_engine_follows_its_models_weights() -> None:
    model = GPT(bold("gpt2").config)
    model.load_state_dict(bold("gpt2").state_dict())
    engine, prompts = Engine(model), prompts_of(4, 6)
    sampling = Sampling(temperature=1.0, top_k=None, max_new_tokens=8)
    before = engine.generate(prompts, n=2, sampling=sampling)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)
    after = engine.generate(prompts, n=2, sampling=sampling)
    assert before != after
    assert after == Engine(model).generate(prompts, n=2, sampling=sampling)


def test_calls_of_different_sizes_do_not_disturb_each_other() -> None:
    engine = Engine(bold("llama"), max_slots=5)
    calls = [((3, 4, 5), 4, 9), ((30, 2), 1, 17), ((1,), 8, 3), ((12, 12, 12, 12), 2, 30), ((3, 4, 5), 4, 9)]
    for lengths, n, new in calls:
        sampling = Sampling(temperature=1.0, max_new_tokens=new)
        fresh = Engine(bold("llama"), max_slots=5).generate(
            prompts_of(*lengths), n=n, sampling=sampling, stop_ids=STOPS
        )
        again = engine.generate(prompts_of(*lengths), n=n, sampling=sampling, stop_ids=STOPS)
        assert [c.token_ids for c in again] == [c.token_ids for c in fresh]


def test_training_goes_on_after_generating(gpt: GPT) -> None:
    gpt.train()
    Engine(gpt).generate([[1, 2]], sampling=Sampling(max_new_tokens=3))
    assert gpt.training
    gpt(torch.tensor([[1, 2, 3]])).sum().backward()  # nothing of inference mode is left in the model
    assert gpt.embed.weight.grad is not None


# Errors


def test_nothing_asked_nothing_given(gpt: GPT) -> None:
    sampling = Sampling(max_new_tokens=3)
    assert Engine(gpt).generate([], sampling=sampling) == []
    assert Engine(gpt).generate([[1]], n=0, sampling=sampling) == []


def test_prompts_that_cannot_be_continued_are_named(gpt: GPT) -> None:
    engine, sampling = Engine(gpt), Sampling(max_new_tokens=3)
    with pytest.raises(UserError, match="prompt 1 is empty"):
        engine.generate([[1], []], sampling=sampling)
    with pytest.raises(UserError, match="prompt 2 has 64 tokens, the model's block_size is 64"):
        engine.generate([[1], [2], [3] * 64], sampling=sampling)


def test_a_model_whose_weights_are_not_numbers_is_refused(gpt: GPT) -> None:
    with torch.no_grad():
        gpt.norm.get_parameter("weight")[3] = float("nan")
    with pytest.raises(UserError, match="logits are not finite"):
        Engine(gpt).generate([[1, 2]], sampling=Sampling(max_new_tokens=3))
