"""What must hold on a GPU as on the CPU, in float32 and in bfloat16: `pytest -m device --device cuda`.

On a GPU bfloat16 means what it means in the stages, where a test runs one: products in bfloat16, weights in float32.
Exact resume is tested on the CPU; a GPU adds up some gradients in changing order, so that here it is nearly exact.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import edit_world
import pytest
import tiny_stages
import torch
from conftest import tiny_config
from engine_twin import STOPS, assert_same, bold, prompts_of, simple
from tiny_stages import STAGES, run_stage

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.common.device import autocast
from nanogpt_edit.common.files import read_jsonl
from nanogpt_edit.common.settings import Precision
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch import edited_weight
from nanogpt_edit.editing.scores import score_patch
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling import draw_tokens
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.tracing.config import TraceConfig
from nanogpt_edit.tracing.tracing import trace_facts
from nanogpt_edit.training.trainer import Trainer

pytestmark = pytest.mark.device

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
PRECISIONS = pytest.mark.parametrize("precision", ["float32", "bfloat16"])
FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])
NEAR = {torch.float32: 2e-4, torch.bfloat16: 5e-2}  # logits of about 1
EDIT = EditConfig(layers=(0, 1), covariance_weight=1.0, steps=25, learning_rate=0.5, clamp=4.0, weight_decay=0.0,
                  n_prefixes=1, covariance_tokens=4000, refine_steps=3, refine_kl=1.0, context_weight=0.1)  # fmt: skip
STEPS = 9  # of each stage


def varied(family: str) -> GPT:
    """A random model whose logits differ enough to tell tokens by."""
    model = GPT(tiny_config(family), seed=0).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() == 2 else 1)
    return model


def rows_of_ids(device: torch.device) -> torch.Tensor:
    return torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(1)).to(device)


# The model


@FAMILIES
@DTYPES
@torch.no_grad()
def test_logits_are_those_of_transformers(
    family: str, dtype: torch.dtype, device: torch.device, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint.save(varied(family), tmp_path / "m", tokenizer=tokenizer)
    ids = rows_of_ids(device)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=dtype).to(device).eval()(ids).logits
    ours = checkpoint.load(tmp_path / "m", device=device, dtype=dtype)(ids)
    assert theirs.std() > 0.1
    assert (ours.float() - theirs.float()).abs().max() < NEAR[dtype] * theirs.float().abs().max()


@FAMILIES
@DTYPES
@torch.no_grad()
def test_cached_decoding_gives_the_logits_of_one_pass(family: str, dtype: torch.dtype, device: torch.device) -> None:
    model, ids = varied(family).to(device, dtype), rows_of_ids(device)
    cache = KVCache(model.config, rows=len(ids), capacity=ids.shape[1], device=device, dtype=dtype)
    steps = [model(ids[:, :7], view=cache)] + [model(ids[:, t : t + 1], view=cache) for t in range(7, ids.shape[1])]
    whole = model(ids).float()
    assert (torch.cat(steps, dim=1).float() - whole).abs().max() < NEAR[dtype] * whole.abs().max()


# The engine


@FAMILIES
@pytest.mark.parametrize("top_k", [None, 5])
def test_decoding_writes_the_texts_of_the_plain_loop(family: str, top_k: int | None, device: torch.device) -> None:
    model = copy.deepcopy(bold(family)).to(device)
    sampling, prompts = Sampling(temperature=1.0, top_k=top_k, max_new_tokens=12, seed=1), prompts_of(1, 7, 3)
    completions = Engine(model, max_slots=4).generate(prompts, n=3, sampling=sampling, stop_ids=STOPS)
    for found in completions:
        key, sample = found.prompt_index, found.sample_index
        assert_same(found, simple(model, prompts[key], key=key, sample=sample, sampling=sampling))


@FAMILIES
@PRECISIONS
def test_decodings_logprobs_are_those_of_one_pass(family: str, precision: Precision, device: torch.device) -> None:
    model, prompts = varied(family).to(device), [[5, 9, 200], [7] * 12]
    sampling = Sampling(temperature=1.0, top_k=None, max_new_tokens=20, seed=3)
    with autocast(device, precision), torch.no_grad():
        for found in Engine(model).generate(prompts, n=4, sampling=sampling):
            ids = torch.tensor([[*prompts[found.prompt_index], *found.token_ids]], device=device)
            every = model(ids)[0, -len(found.token_ids) - 1 : -1].float().log_softmax(-1)
            own = every.gather(1, ids[0, -len(found.token_ids) :, None])[:, 0]
            apart = (own.cpu() - torch.tensor(found.logprobs)).abs().max()
            assert apart < (1e-3 if precision == "float32" else 0.3), apart


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 1.0), (None, 0.9), (400, 0.5)])
def test_a_token_without_probability_is_never_drawn(top_k: int | None, top_p: float, device: torch.device) -> None:
    """Sums on a GPU are made in pieces, and rounding can let a cumulated probability rise where nothing is added."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 50_304, generator=generator).mul_(6)
    logits[torch.rand(logits.shape, generator=generator) < 0.9] = -torch.inf
    uniforms = torch.rand(16, generator=generator, dtype=torch.float64)
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p)
    for _ in range(3):
        drawn, logprobs = draw_tokens(logits.to(device), uniforms.to(device), sampling)
        assert logits.gather(1, drawn.cpu()[:, None]).isfinite().all()
        assert logprobs.isfinite().all()
        uniforms = (uniforms + 0.618) % 1


# Training


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Of every stage, on the device."""
    monkeypatch.setattr(tiny_stages, "DEVICE", str(device))
    for name in ("PRETRAIN", "SFT", "GRPO"):
        monkeypatch.setattr(tiny_stages, name, replace(getattr(tiny_stages, name), steps=STEPS))


@pytest.mark.parametrize("stage", STAGES)
@PRECISIONS
def test_a_stages_first_step_is_that_of_the_cpu(
    stage: str, precision: Precision, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with autocast(device, precision):
        model = run_stage(stage, tmp_path / "here")
    assert all(weight.isfinite().all() and weight.dtype == torch.float32 for weight in model.parameters())
    monkeypatch.setattr(tiny_stages, "DEVICE", "cpu")
    run_stage(stage, tmp_path / "cpu")
    ours, theirs = (read_jsonl(tmp_path / name / "log.jsonl") for name in ("here", "cpu"))
    assert len(ours) == len(theirs) == STEPS
    exact = precision == "float32"
    if exact or stage != "grpo":  # a rollout in bfloat16 is another one
        assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], abs=2e-4 if exact else 5e-2)
        assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=2e-3 if exact else 0.1)
    if stage == "grpo":
        assert max(float(str(line["sampler_gap"] or 0.0)) for line in ours) < (1e-3 if exact else 0.1)
    else:
        assert float(str(ours[-1]["loss"])) < float(str(ours[0]["loss"]))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_stage_goes_on_where_it_was(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_stage(stage, tmp_path / "whole")
    with monkeypatch.context() as accident:
        accident.setattr(Trainer, "log", stop_at(STEPS - 2))
        with pytest.raises(Stopped):
            run_stage(stage, tmp_path / "parts")
    again = run_stage(stage, tmp_path / "parts")
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


class Stopped(Exception):
    pass


def stop_at(step: int) -> Callable[..., None]:
    original = Trainer.log

    def log(self: Trainer, *arguments: object, **named: object) -> None:
        if self.step == step:
            raise Stopped
        original(self, *arguments, **named)

    return log


# Editing


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("gpt2", torch.float32), ("llama", torch.float32), ("gpt2", torch.bfloat16)],
    ids=["gpt2-float32", "llama-float32", "gpt2-bfloat16"],
)
def test_an_edit_is_undone_to_the_bit(family: str, dtype: torch.dtype, device: torch.device) -> None:
    model, facts = edit_world.trained_model(family).to(device, dtype), edit_world.facts()
    before = fingerprint(model)
    patch = edit_model(model, facts, EDIT, covariance_blocks=edit_world.covariance_blocks())
    assert fingerprint(model) == before
    if dtype == torch.float32:
        assert score_patch(model, patch).success.value >= 0.75
    bound = patch.apply(model)
    assert fingerprint(model) != before
    bound.revert(model)
    assert fingerprint(model) == before


@pytest.mark.parametrize("method", ["memit", "rome", "alphaedit", "ft"])
def test_a_patch_gives_the_same_bits_on_every_device(method: str, device: torch.device) -> None:
    model, facts = edit_world.trained_model().to(device), edit_world.facts(2)
    config = EditConfig(method=method, layers=(0, 1), steps=3, n_prefixes=1, covariance_tokens=1000)
    patch = edit_model(model, facts, config, covariance_blocks=edit_world.covariance_blocks())
    elsewhere = edit_world.trained_model()
    patch.apply(model)
    patch.apply(elsewhere)
    for layer in patch.layers:
        assert torch.equal(edited_weight(model, layer).cpu(), edited_weight(elsewhere, layer))


def test_a_trace_is_that_of_the_cpu(device: torch.device) -> None:
    config = TraceConfig(draws=3)
    ours, theirs = (
        trace_facts(edit_world.trained_model().to(where), edit_world.facts(2), config) for where in (device, "cpu")
    )
    for mine, expected in zip(ours, theirs, strict=True):
        assert math.isclose(mine.total_effect, expected.total_effect, abs_tol=1e-4)
        for site, effect in mine.effect.items():
            assert (effect - expected.effect[site]).abs().max() < 1e-3
