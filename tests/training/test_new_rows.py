"""Rows of added tokens, fitted before SFT: to the minimum, alone, the same when done again, and worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from conftest import TEXTS
from tiny_stages import PROBLEMS
from tokenizers import decoders, models, pre_tokenizers, trainers

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.common.reasoning import TAGS, parse
from nanogpt_edit.data.samples import Sample, prompt_ids, to_sample
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.training import sft as sft_module
from nanogpt_edit.training.new_rows import RIDGE, Seen, fit_new_rows, look, minimise, untrained_rows
from nanogpt_edit.training.sft import sft, train_on
from nanogpt_edit.training.sft_config import SFTConfig
from nanogpt_edit.training.trainer import Trainer

FAMILIES = ("gpt2", "llama", "qwen2", "qwen3")
EVERY_MODEL = pytest.mark.parametrize(
    ("family", "tied"), [(family, tied) for family in FAMILIES for tied in (True, False)]
)
CONFIG = SFTConfig(
    steps=50,
    optimizer="muon",
    learning_rate=4e-3,
    batch_size=16,
    replay=0,
    keep="last",
    evaluate_every=50,
    save_every=50,
)


def foreign_model(folder: Path, *, family: str = "llama", tied: bool = True) -> GPT:
    """A random model of a vocabulary without reasoning tokens, loaded from its directory, where they are added."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    inner.train_from_iterator(TEXTS, trainer=trainer)
    config = GPTConfig(
        vocab_size=inner.get_vocab_size(), block_size=64, n_layer=2, n_head=4, n_embd=64, tie_embeddings=tied
    )
    if family != "gpt2":
        config = replace(
            config,
            model_type=family,
            n_kv_head=2,
            mlp_dim=128,
            norm="rmsnorm",
            activation="swiglu",
            positions="rope",
            bias=False,
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
        )
    checkpoint.save(GPT(config, seed=0), folder)
    inner.save(str(folder / "tokenizer.json"))
    return checkpoint.load(folder)


def samples_for(model: GPT) -> list[Sample]:
    return [to_sample(problem, tokenizer_of(model)) for problem in PROBLEMS]


def train(model: GPT, folder: Path, config: SFTConfig = CONFIG) -> GPT:
    samples = samples_for(model)
    sft(model, samples, samples[:2], config, replay=None, seed=0, state=folder / "state", log=folder / "sft.jsonl")
    return model


def well_formed(model: GPT) -> float:
    """Share of 64 completions."""
    tokenizer = tokenizer_of(model)
    sampling = Sampling(temperature=0.7, top_k=50, max_new_tokens=40, seed=0)
    prompts = [prompt_ids(problem, tokenizer) for problem in PROBLEMS[:16]]
    found = list(Engine(model, max_slots=64).stream(prompts, n=4, sampling=sampling, stop_ids=tokenizer.stop_ids))
    return sum(parse(tokenizer.decode(each.token_ids)).well_formed for each in found) / len(found)


@EVERY_MODEL
def test_only_the_new_rows_move_and_they_find_their_places(tmp_path: Path, family: str, tied: bool) -> None:
    model = foreign_model(tmp_path, family=family, tied=tied)
    rows, before = untrained_rows(model), {name: each.clone() for name, each in model.named_parameters()}
    assert [tokenizer_of(model).token_text(row) for row in rows] == list(TAGS)
    fit_new_rows(model, samples_for(model), rows, max_tokens=100)
    fitted = "embed.weight" if tied else "head.weight"
    for name, weight in model.named_parameters():
        moved = (weight != before[name]).flatten(1).any(1) if name == fitted else weight != before[name]
        assert moved.nonzero().flatten().tolist() == (list(rows) if name == fitted else [])
    prompt = torch.tensor([prompt_ids(PROBLEMS[5], tokenizer_of(model))])
    with torch.no_grad():
        chances = model(prompt)[0].softmax(-1)[:, list(rows)]
    assert chances[-1, 0] > 0.5  # <think>, after the question
    assert chances[:-1].sum(-1).max() < 0.2  # nothing within it


def test_fitted_once_more_the_rows_are_the_same_bits(tmp_path: Path) -> None:
    model = foreign_model(tmp_path)
    rows, samples = untrained_rows(model), samples_for(model)
    fit_new_rows(model, samples, rows, max_tokens=1000)
    once = fingerprint(model)
    fit_new_rows(model, samples, rows, max_tokens=1000)
    assert fingerprint(model) == once


def test_the_loss_is_that_of_the_softmax_over_the_whole_vocabulary(tmp_path: Path) -> None:
    """Whether and which new token comes next, all others being one: from the logits, and from what is kept of them."""
    model = foreign_model(tmp_path, tied=False)
    rows, samples = list(untrained_rows(model)), samples_for(model)[:3]
    seen = look(model, samples, torch.tensor(rows), max_tokens=30)
    nats, count = 0.0, 0
    for sample in sorted(samples, key=lambda sample: len(sample.token_ids)):
        with torch.no_grad():
            logprobs = model(torch.tensor([sample.token_ids[:-1]]))[0].log_softmax(-1)
        for at, comes in enumerate(sample.token_ids[1:]):
            none = 1 - logprobs[at, rows].exp().sum()
            nats -= float(logprobs[at, comes] if comes in rows else none.log())
            count += 1
    assert len(seen.states) == count
    assert float(seen.loss(model.head_weight.detach()[rows])) == pytest.approx(nats / count, rel=1e-5)


def test_the_minimum_is_found() -> None:
    """Two tokens in one dimension, one new: at the minimum the slope of the loss and of the ridge are equal."""
    seen = Seen(states=torch.tensor([[2.0], [-2.0]]), others=torch.tensor([0.0, 0.0]), next_new=torch.tensor([0, 1]))
    row = minimise(seen, torch.tensor([0.5]), torch.tensor(4.0), count=1).requires_grad_()
    (slope,) = torch.autograd.grad(seen.loss(row), row)
    assert slope.item() == pytest.approx(-2 / (1 + (2 * row).exp().item()), rel=1e-4)
    assert slope.item() == pytest.approx(-2 * RIDGE * (row.item() - 0.5) / 4**2, rel=3e-2)


def test_sft_fits_once_and_the_lineage_says_so(tmp_path: Path) -> None:
    model = train(foreign_model(tmp_path / "model"), tmp_path, replace(CONFIG, steps=1))
    assert model.lineage[-1].kind == "fitted"
    assert untrained_rows(model) == ()
    checkpoint.save(model, tmp_path / "sft")
    assert untrained_rows(checkpoint.load(tmp_path / "sft")) == ()


def test_rows_are_new_until_they_are_trained_however_often_the_model_is_saved(tmp_path: Path) -> None:
    model = foreign_model(tmp_path / "model")
    checkpoint.save(model, tmp_path / "base", lineage_note="taken over")
    again = checkpoint.load(tmp_path / "base")
    assert untrained_rows(again) == untrained_rows(model) != ()


class Accident(Exception):
    """What stops a run in the tests."""


@pytest.mark.parametrize("stopped_in", [0, 3])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_in: int
) -> None:
    def stopping(trainer: Trainer, rows: Sequence[Sample]) -> tuple[float, float]:
        if trainer.step == stopped_in:
            raise Accident
        return train_on(trainer, rows)

    config = replace(CONFIG, steps=4, save_every=2)
    whole = train(foreign_model(tmp_path / "model"), tmp_path / "whole", config)
    with monkeypatch.context() as patch, pytest.raises(Accident):
        patch.setattr(sft_module, "train_on", stopping)
        train(foreign_model(tmp_path / "model"), tmp_path / "stopped", config)
    resumed = train(foreign_model(tmp_path / "model"), tmp_path / "stopped", config)
    assert fingerprint(resumed) == fingerprint(whole)
    assert resumed.lineage == whole.lineage


@pytest.mark.slow
def test_after_fifty_steps_the_form_is_there_and_without_the_fit_it_is_not(tmp_path: Path) -> None:
    kept, without = (
        train(foreign_model(tmp_path / "model", tied=False), tmp_path / str(fit), replace(CONFIG, fit_problems=fit))
        for fit in (32, 0)
    )
    assert well_formed(kept) >= 0.9
    assert well_formed(without) < 0.7
