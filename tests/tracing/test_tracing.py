"""Causal tracing: the batched sweep against one hooked run per state, and what must hold whatever the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from edit_world import facts, random_model, trained_model
from plain_tracing import trace as plain_trace

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.tracing.average import average_trace, kinds_of_tokens
from nanogpt_edit.tracing.config import SITES, TraceConfig
from nanogpt_edit.tracing.tracing import Traced, Tracer, trace, trace_facts

CONFIG = TraceConfig(draws=3, window=2)


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(request.param)


@torch.no_grad()
def test_the_sweep_equals_one_run_per_state(model: GPT) -> None:
    traced, tracer = trace_facts(model, facts(4), CONFIG), Tracer(model, facts(4), CONFIG)
    n_layer = model.config.n_layer
    for index in (0, 3):
        found = traced[index]
        subject = slice(found.subject_first, found.subject_last + 1)
        noise = tracer.noise[index, :, subject]
        for site in SITES:
            alone = [range(layer, layer + 1) for layer in range(n_layer)]
            around = [CONFIG.layers_around(layer, n_layer) for layer in range(n_layer)]
            windows = [range(0), *(alone if site == "resid_post" else around)]  # the first restores nothing
            plain = plain_trace(model, tracer.rows[index], subject, tracer.targets[index], noise, site, windows)
            corrupted, restored = plain[:, :1], plain[:, 1:]
            assert found.corrupted_p == pytest.approx(float(corrupted[0]), rel=1e-3, abs=1e-6)
            torch.testing.assert_close(found.effect[site], restored - corrupted, rtol=2e-3, atol=1e-5)


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
