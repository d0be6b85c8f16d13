"""Causal tracing: the batched sweep against one hooked run per state, and what must hold whatever the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from edit_world import facts, random_model, trained_model
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.facts import locate_subject
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.sites import capture, patch
from nanogpt_edit.tracing.average import average_trace, kinds_of_tokens
from nanogpt_edit.tracing.tracing import SITES, TraceConfig, Traced, Tracer, trace, trace_facts

CONFIG = TraceConfig(draws=3, window=2)


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(request.param)


def slow_effect(model: GPT, index: int, site: str, token: int, layer: int) -> tuple[float, float]:
    """Corrupted and restored p(target) with one full, hooked forward pass per draw."""
    assert model.tokenizer is not None
    fact = facts(4)[index]
    place = locate_subject(fact.prompt, fact.subject, model.tokenizer)
    token_ids = torch.tensor([place.token_ids])
    target = model.tokenizer.encode(" " + fact.target_true)[0]
    noise = Tracer(model, facts(4), CONFIG).noise[index, :, : token_ids.shape[1]]
    window = [layer] if site == "resid_post" else list(CONFIG.layers_around(layer, model.config.n_layer))
    with capture(model, [(site, i) for i in window]) as seen:
        model(token_ids)
        clean = {key: value.clone() for key, value in seen.items()}

    @contextmanager
    def noisy(draw: int) -> Iterator[None]:
        with patch(model, {("resid_pre", 0): lambda x: x + noise[draw]}):
            yield

    def put_back(key: tuple[str, int]) -> Callable[[Tensor], Tensor]:
        def change(value: Tensor) -> Tensor:
            value = value.clone()
            value[:, token] = clean[key][:, token]
            return value

        return change

    corrupted, restored = [], []
    for draw in range(CONFIG.draws):
        with noisy(draw):
            corrupted.append(model(token_ids)[0, -1].softmax(-1)[target])
            with patch(model, {key: put_back(key) for key in clean}):
                restored.append(model(token_ids)[0, -1].softmax(-1)[target])
    return float(torch.stack(corrupted).mean()), float(torch.stack(restored).mean())


@torch.no_grad()
def test_the_sweep_equals_one_run_per_state(model: GPT) -> None:
    traced = trace_facts(model, facts(4), CONFIG)
    for index in (0, 3):
        found = traced[index]
        for site in SITES:
            for token in {found.subject_first, found.subject_last, len(found.tokens) - 1}:
                for layer in range(model.config.n_layer):
                    corrupted, restored = slow_effect(model, index, site, token, layer)
                    assert found.corrupted_p == pytest.approx(corrupted, rel=1e-3, abs=1e-6)
                    effect = float(found.effect[site][token, layer])
                    assert effect == pytest.approx(restored - corrupted, rel=2e-3, abs=1e-5)


def test_a_site_alone_is_as_among_all(model: GPT) -> None:
    whole = trace_facts(model, facts(2), CONFIG)
    for site in SITES:
        for alone, among in zip(trace_facts(model, facts(2), replace(CONFIG, sites=(site,))), whole, strict=True):
            assert list(alone.effect) == [site]
            torch.testing.assert_close(alone.effect[site], among.effect[site], rtol=1e-3, atol=1e-6)
    with pytest.raises(UserError, match="name at least one"):
        TraceConfig(sites=())


def test_restoring_everything_gives_the_clean_probability(model: GPT) -> None:
    """The last token's state after the last block is all that the answer is read from."""
    for found in trace_facts(model, facts(4), CONFIG):
        everything = float(found.effect["resid_post"][-1, -1])
        assert found.corrupted_p + everything == pytest.approx(found.clean_p, rel=1e-4)
        assert found.total_effect == pytest.approx(everything, rel=1e-3, abs=1e-6)


def test_without_noise_nothing_is_lost(model: GPT) -> None:
    for found in trace_facts(model, facts(2), TraceConfig(draws=2, noise=0.0)):
        assert found.corrupted_p == pytest.approx(found.clean_p, rel=1e-4)
        assert all(float(effect.abs().max()) < 1e-5 for effect in found.effect.values())


def test_before_the_subject_there_is_nothing_to_restore(model: GPT) -> None:
    found = trace_facts(model, facts(1), CONFIG)[0]
    assert found.subject_first > 0
    assert all(float(effect[: found.subject_first].abs().max()) == 0.0 for effect in found.effect.values())


def test_a_fact_is_traced_alike_in_any_company(model: GPT) -> None:
    together = trace_facts(model, facts(4), CONFIG)
    for alone, among in zip((trace_facts(model, [fact], CONFIG)[0] for fact in facts(4)), together, strict=True):
        assert alone.tokens == among.tokens
        assert alone.corrupted_p == pytest.approx(among.corrupted_p, rel=1e-3, abs=1e-7)
        for site in SITES:
            torch.testing.assert_close(alone.effect[site], among.effect[site], rtol=1e-3, atol=1e-5)


def test_a_trained_model_recalls_at_the_subjects_last_token() -> None:
    """Its prompts end with the subject, so the last token carries the whole effect after the last block."""
    traced = trace_facts(trained_model(), facts(4), TraceConfig(draws=4))
    assert all(found.clean_p > 0.5 > found.corrupted_p for found in traced)
    for found in traced:
        effect = found.effect["resid_post"]
        assert float(effect[found.subject_last, -1]) == pytest.approx(found.total_effect, rel=1e-3)
        assert float(effect[found.subject_first, -1]) == 0.0  # nothing reads it any more


def test_one_prompt_is_traced_for_what_the_model_says(model: GPT) -> None:
    assert model.tokenizer is not None
    found = trace(model, "capital of Valdoria", "Valdoria", config=CONFIG)
    token_ids = torch.tensor([model.tokenizer.encode("capital of Valdoria")])
    best = model(token_ids)[0, -1, : model.tokenizer.vocab_size].softmax(-1)
    assert found.tokens == tuple(model.tokenizer.token_text(i) for i in token_ids[0].tolist())
    assert 0 < found.clean_p <= float(best.max().detach()) + 1e-6


def test_the_record_averages_by_kind_of_token() -> None:
    def traced(effect: float, length: int) -> Traced:
        grid = torch.zeros(length, 2)
        grid[2, 1] = effect  # the subject's last token, layer 1
        return Traced(
            tokens=("a",) * length,
            subject_first=1,
            subject_last=2,
            target=" x",
            clean_p=0.9,
            corrupted_p=0.1,
            effect=dict.fromkeys(SITES, grid),
        )

    record = average_trace([traced(0.2, 5), traced(0.6, 4)], stage="base")
    assert record.token_groups == ("before subject", "subject first", "subject last", "after", "last")
    assert record.indirect_effect["mlp_out"][2] == pytest.approx((0.0, 0.4))
    assert record.indirect_effect["mlp_out"][3] == (0.0, 0.0)
    assert record.high["mlp_out"][0] == (0.0, 0.0)  # before the subject nothing can be restored
    assert record.n == 2
    assert kinds_of_tokens(traced(0.1, 4)) == {
        "before subject": [0],
        "subject first": [1],
        "subject last": [2],
        "last": [3],
    }


def test_windows_are_cut_at_the_ends() -> None:
    config = TraceConfig(window=4)
    assert [list(config.layers_around(layer, 6)) for layer in (0, 3, 5)] == [[0, 1], [1, 2, 3, 4], [3, 4, 5]]
    assert list(TraceConfig().layers_around(2, 4)) == [2]
    assert len(TraceConfig().layers_around(20, 48)) == 9
