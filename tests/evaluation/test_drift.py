"""How far next-token distributions moved: by hand on a model of two tokens' odds, and against plain log-softmaxes."""

from __future__ import annotations

import math

import pytest
import torch
from edit_world import covariance_blocks, random_model

from nanogpt_edit.evaluation import drift as room
from nanogpt_edit.evaluation.drift import Reading, drift, read


def test_nothing_moves_where_nothing_changed() -> None:
    model = random_model("llama")
    reading = read(model, covariance_blocks()[:6])
    found = drift(model, reading, reading)
    assert (found.kl.value, found.top_changed.value) == (0.0, 0.0)
    assert found.tokens == reading.states.shape[0] * reading.states.shape[1]


def test_kl_is_that_of_the_plain_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = random_model("gpt2"), covariance_blocks()[:5]
    monkeypatch.setattr(room, "LOGIT_NUMBERS", 14 * model.config.vocab_size)  # seven places at once
    before = read(model, text)
    with torch.no_grad():
        old = model(text[:, :-1]).log_softmax(-1)
        model.blocks[0].mlp.down.weight.mul_(1.5)
        new = model(text[:, :-1]).log_softmax(-1)
    found = drift(model, before, read(model, text))
    kl = torch.nn.functional.kl_div(new, old, reduction="none", log_target=True).sum(-1)  # (N, T), in nats
    assert found.kl.value == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found.top_changed.value == pytest.approx(float((old.argmax(-1) != new.argmax(-1)).float().mean()))
    assert [each.kl for each in found.worst] == pytest.approx(sorted(kl.max(1).values.tolist(), reverse=True), rel=1e-3)
    first = found.worst[0]
    row, place = divmod(int(kl.argmax()), kl.shape[1])
    assert model.tokenizer is not None
    assert first.follows == model.tokenizer.decode([int(text[row, place + 1])])
    assert first.before == model.tokenizer.decode([int(old[row, place].argmax())])
    assert first.p_after == pytest.approx(float(new[row, place].max().exp()), rel=1e-3)


def test_kl_by_hand() -> None:
    """Over two tokens: from (1/2, 1/2) to (1/4, 3/4) it is ½ ln 2 + ½ ln(2/3), about 0.144 nats."""
    model = random_model("gpt2")
    with torch.no_grad():
        model.embed.weight.zero_()  # the head, too
        model.embed.weight[:2, 0] = torch.tensor([1.0, -1.0])
        model.embed.weight[2:, 1] = -50.0  # all others are out of the question
    states = torch.zeros(1, 1, model.config.n_embd)
    states[..., 1] = 1.0
    moved = states.clone()
    moved[..., 0] = -math.log(3) / 2  # odds of 1 to 3
    block = torch.tensor([[5, 6]])
    found = drift(model, Reading(block, states), Reading(block, moved))
    assert found.kl.value == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-5)
    assert found.kl.value == pytest.approx(0.1438, abs=1e-4)
    assert found.worst[0].p_after == pytest.approx(0.75, abs=1e-5)
