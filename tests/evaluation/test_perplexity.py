"""Nats per token and perplexity: of a model that knows nothing, and by the simple path."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_stages import tiny_model

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.evaluation import perplexity as perplexity_module
from nanogpt_edit.evaluation.perplexity import block_nats, perplexity
from nanogpt_edit.evaluation.records import read_nats
from nanogpt_edit.model.gpt import GPT


def test_perplexity_of_a_model_that_knows_nothing_is_the_size_of_its_vocabulary() -> None:
    model = tiny_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    found = perplexity(block_nats(model, torch.randint(0, 300, (3, 9))))
    assert found["perplexity"].value == pytest.approx(300, rel=1e-4)
    assert found["nats_per_token"].value == pytest.approx(math.log(300), rel=1e-5)


def test_perplexity_is_the_mean_over_all_tokens() -> None:
    model = tiny_model().eval()
    blocks = torch.randint(0, 300, (5, 12))
    nats = []
    for block in blocks:
        with torch.no_grad():
            logprobs = model(block[None])[0].double().log_softmax(dim=-1)
        nats += [-logprobs[i, block[i + 1]].item() for i in range(11)]
    expected = sum(nats) / 55
    for rows in (1, 2, 32):
        found = perplexity(block_nats(model, blocks, rows=rows))
        assert found["nats_per_token"].value == pytest.approx(expected, rel=1e-6)
        assert found["perplexity"].value == pytest.approx(math.exp(expected), rel=1e-5)
        assert found["perplexity"].low == pytest.approx(math.exp(found["nats_per_token"].low))
        assert found["perplexity"].n == 5


def test_a_file_that_holds_no_nats_is_named(tmp_path: Path) -> None:
    (tmp_path / "x_text.jsonl").write_text('{"nats_per_token": 1.5}\n{"nats": 2.0}\n')
    with pytest.raises(UserError, match=r'x_text\.jsonl:2 has an unknown field "nats"'):
        read_nats(tmp_path / "x_text.jsonl")


@pytest.mark.parametrize("numbers", [1, 300 * 7, 300 * 50])
def test_the_logits_held_at_once_change_nothing(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, blocks = tiny_model(), torch.randint(0, 300, (4, 12))
    whole = block_nats(model, blocks)
    monkeypatch.setattr(perplexity_module, "LOGIT_NUMBERS", numbers)
    assert block_nats(model, blocks) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_in_training_stays_so_and_is_measured_without_dropout(training: bool) -> None:
    model = GPT(replace(tiny_model().config, dropout=0.5)).train(training)
    blocks = torch.randint(0, 300, (4, 12))
    assert block_nats(model, blocks) == block_nats(model, blocks)
    assert model.training == training


def test_no_blocks_have_no_nats() -> None:
    assert block_nats(tiny_model(), torch.zeros(0, 12, dtype=torch.int64)) == []
