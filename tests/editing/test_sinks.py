"""Where the first token of a text holds an attention sink, and what an edit makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from edit_world import PLAIN, covariance_blocks, facts, random_model

from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing import sinks
from nanogpt_edit.editing.contexts import LocatedFact, locate_facts
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.sinks import SinkNorms, sink_norms, without_sinks
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of

QUICK = replace(PLAIN, layers=(0, 1), steps=2, covariance_tokens=500, n_prefixes=2, prefix_tokens=2)


def model_with_sink() -> GPT:
    """Every text's first token is a hundred times as large as another."""
    model = random_model()
    assert model.positions is not None
    with torch.no_grad():
        model.positions.weight[0] = 100 * model.positions.weight[1]
    return model


def first_token_fact(model: GPT) -> Fact:
    """A fact about the first token of its prompt."""
    tokenizer = tokenizer_of(model)
    prompt = facts(1)[0].prompt
    first = tokenizer.decode(tokenizer.encode(prompt)[:1])
    return Fact(prompt=prompt, subject=first, target_new="Lima", target_true="Paris")


def located(model: GPT, prefixes: tuple[str, ...]) -> tuple[LocatedFact, ...]:
    return locate_facts(model, [first_token_fact(model), facts(2)[1]], prefixes)


def test_one_pass_shows_the_sink_of_every_layer() -> None:
    blocks = covariance_blocks()[:3]
    model = random_model()
    assert not any(norms.is_sink for norms in sink_norms(model, blocks))
    model = model_with_sink()
    for layer, norms in enumerate(sink_norms(model, blocks)):
        states = model.run_blocks(model.embed_tokens(blocks), stop=layer + 1).detach().norm(dim=-1)
        assert norms.first == pytest.approx(float(states[:, 0].median()), rel=1e-4)
        assert norms.others == pytest.approx(float(states[:, 1:].median()), rel=1e-4)
        assert norms.is_sink
    assert [SinkNorms(first, 10.0).is_sink for first in (39.0, 41.0)] == [False, True]


def test_a_text_whose_subject_is_the_sink_takes_no_part() -> None:
    model = model_with_sink()
    before = located(model, ("Lo. ", "Oh. "))
    first, other = without_sinks(model, before, 1)
    assert first.contexts == before[0].contexts[1:]
    assert (first.prompts, first.bare) == (0, before[0].bare)
    assert other == before[1]
    assert without_sinks(random_model(), before, 1) == before


def test_a_fact_with_nothing_else_keeps_its_prompt() -> None:
    model = model_with_sink()
    before = located(model, ())
    assert without_sinks(model, before, 1) == before


def test_an_edit_says_that_a_subject_is_a_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    model, said = model_with_sink(), list[str]()
    monkeypatch.setattr(sinks, "say", said.append)
    asked = [first_token_fact(model), facts(2)[1]]
    patch = edit_model(model, asked, QUICK, covariance_blocks=covariance_blocks())
    (line,) = said
    assert line.startswith("The subject of 1 of 2 facts is the first token of its prompt (as in")
    assert [edited.columns for edited in patch.edited] == [2, 3]
    assert all(update.keys.shape[1] == 5 for update in patch.layers.values())
    edit_model(model, asked, replace(QUICK, preset="published"), covariance_blocks=covariance_blocks())
    assert len(said) == 1
