"""Stages that learn adapters: what moves, what is kept, what a killed run goes on from, what GRPO is held against."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_stages import GRPO, LORA, PROBLEMS, SFT, WITH_LORA, run_stage, tiny_model, tiny_tokenizer
from torch import Tensor

from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_jsonl
from nanogpt_edit.data.samples import to_sample
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.packed_weights import CastWeights, PackedWeights
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model import linear
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.model.linear import Linear, Packed
from nanogpt_edit.model.lora import Lora
from nanogpt_edit.model.lora_config import LoraConfig
from nanogpt_edit.training import sft as sft_module
from nanogpt_edit.training.config import Default
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.rollouts import RolloutSampler
from nanogpt_edit.training.sft import sft
from nanogpt_edit.training.sft_config import SFTConfig
from nanogpt_edit.training.states import load_tensors
from nanogpt_edit.training.trainer import Trainer
from nanogpt_edit.training.update import UpdateSize, frozen, group_terms

ANY_STAGE = pytest.mark.parametrize("stage", WITH_LORA)


class Accident(Exception):
    pass


def learned(model: GPT, **settings: object) -> Lora:
    """Adapters whose B is no longer zero."""
    lora = Lora.of(model, LoraConfig(**{"rank": 3, "alpha": 12, **settings}), seed=0)  # type: ignore[arg-type]
    assert lora is not None
    for b in lora.b:
        torch.nn.init.normal_(b, std=0.3, generator=torch.Generator().manual_seed(len(b)))
    return lora


def fine_tuned(folder: Path, config: SFTConfig, model: GPT | None = None, *, own: int = 16) -> tuple[GPT, Trainer]:
    model, samples = model or tiny_model(), [to_sample(problem, tiny_tokenizer()) for problem in PROBLEMS]
    state, log = folder / "state", folder / "log.jsonl"
    trainer = sft(model, samples[5 : 5 + own], samples[:5], config, replay=None, seed=1, state=state, log=log)
    return model, trainer


@ANY_STAGE
def test_a_stage_that_is_cut_short_goes_on_to_the_same_bits(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    whole, original = run_stage(stage, tmp_path / "whole"), Trainer.apply_gradients
    with monkeypatch.context() as patch:

        def fail(self: Trainer) -> float:
            if self.step == 7:
                raise Accident
            return original(self)

        patch.setattr(Trainer, "apply_gradients", fail)
        with pytest.raises(Accident):
            run_stage(stage, tmp_path / "cut")
    assert fingerprint(run_stage(stage, tmp_path / "cut")) == fingerprint(whole)
    losses = [[line["loss"] for line in read_jsonl(tmp_path / each / "log.jsonl")] for each in ("whole", "cut")]
    assert losses[0] == losses[1]
    assert fingerprint(whole) != fingerprint(tiny_model())


def test_rows_of_new_tokens_are_fitted_again_where_a_stage_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay as they are from then on, and no state holds them."""

    def with_new_tokens() -> GPT:
        model = tiny_model()
        new = tuple(range(model.config.vocab_size - 4, model.config.vocab_size))
        model.lineage = (LineageEntry("vocabulary", "four tokens added", new_rows=new),)
        return model

    torch.set_num_threads(1)
    config = replace(SFT, steps=5, save_every=2, fit_problems=4, lora=LORA)
    whole, _ = fine_tuned(tmp_path / "whole", config, with_new_tokens())
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "log", fail_at(3, Trainer.log))
        with pytest.raises(Accident):
            fine_tuned(tmp_path / "cut", config, with_new_tokens())
    again, _ = fine_tuned(tmp_path / "cut", config, with_new_tokens())
    assert fingerprint(again) == fingerprint(whole)
    moved = (whole.head_weight != tiny_model().head_weight).any(dim=1)
    assert moved.nonzero().flatten().tolist() == list(range(len(moved) - 4, len(moved)))


def fail_at(step: int, original: Callable[..., None]) -> Callable[..., None]:
    def log(self: Trainer, *given: object, **named: object) -> None:
        if self.step == step:
            raise Accident
        original(self, *given, **named)

    return log


LAYERS = [f"blocks.{layer}.{name}" for layer in (0, 1) for name in ("attn.qkv", "attn.out", "mlp.up", "mlp.down")]


def test_the_model_is_the_old_one_with_its_change_and_states_are_of_what_learns(tmp_path: Path) -> None:
    """W + (12 / 3) B A, with A and B as the last state holds them."""
    model, trainer = fine_tuned(tmp_path, replace(SFT, steps=5, keep="both", lora=LORA))
    trainer.use("last")
    tensors, _ = load_tensors(max((tmp_path / "state").glob("step_*")))
    names = [f"{part}.{number}" for part in "ab" for number in range(len(LAYERS))]
    moments = ("", "exp_avg/", "exp_avg_sq/", "step/")
    assert sorted(tensors) == sorted(moment + name for moment in moments for name in names)
    for name, before in tiny_model().named_parameters():
        weight, layer = model.get_parameter(name), name.removesuffix(".weight")
        if layer in LAYERS:
            number = LAYERS.index(layer)
            change = 4 * tensors[f"b.{number}"] @ tensors[f"a.{number}"]
            torch.testing.assert_close(weight.detach(), before.detach() + change)
            assert change.abs().max() > 1e-3
        else:
            assert torch.equal(weight, before), name
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(layer.adapter for layer in model.modules() if isinstance(layer, Linear))


def test_only_the_layers_that_are_named_learn(tmp_path: Path) -> None:
    model, _ = fine_tuned(tmp_path, replace(SFT, steps=2, keep="last", lora=LoraConfig(3, targets="mlp.up, attn.qkv")))
    moved = {
        name for name, weight in tiny_model().named_parameters() if not torch.equal(weight, model.get_parameter(name))
    }
    assert moved == {f"blocks.{layer}.{name}.weight" for layer in (0, 1) for name in ("attn.qkv", "mlp.up")}


def test_the_best_and_the_last_can_be_had_in_turns(tmp_path: Path) -> None:
    config = replace(SFT, steps=16, learning_rate=0.05, keep="both", lora=LORA)
    model, trainer = fine_tuned(tmp_path, config, own=1)
    last, _ = fine_tuned(tmp_path / "last", replace(config, keep="last"), own=1)
    best = fingerprint(model)
    assert best != fingerprint(last)
    for which, expected in (("last", fingerprint(last)), ("best", best), ("last", fingerprint(last))):
        trainer.use(which)  # type: ignore[arg-type]
        assert fingerprint(model) == expected


def test_whoever_lent_the_model_gets_it_back_when_a_stage_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    monkeypatch.setattr(sft_module, "completion_loss_sum", lambda *_: (_ for _ in ()).throw(Accident))
    with pytest.raises(Accident):
        fine_tuned(tmp_path, replace(SFT, lora=LORA), model)
    assert fingerprint(model) == fingerprint(tiny_model())
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(layer.adapter for layer in model.modules() if isinstance(layer, Linear))


# The reference


def rollout(model: GPT, config: GRPOConfig) -> list:  # type: ignore[type-arg]
    return RolloutSampler.of(Engine(model), config, seed=0).sample_groups(PROBLEMS[:3], draw=0)


def test_the_reference_is_the_model_without_its_adapter_to_the_last_bit() -> None:
    config = replace(GRPO, kl_coef=0.5)
    model = tiny_model().eval()
    copied, lora = frozen(copy.deepcopy(model).eval()), learned(model)
    groups = rollout(model, config)
    with lora.attached(model):
        size = UpdateSize.of(groups)
        found = []
        for reference in (lora.off, copied):
            terms, _ = group_terms(model, reference, groups, config, size=size, entropy_coef=0.0)
            found.append((terms.kl, terms.loss.item()))
    assert found[0] == found[1]
    assert found[0][0] > 1e-3


def test_policy_and_reference_are_one_at_the_first_step(tmp_path: Path) -> None:
    run_stage("grpo+lora", tmp_path)
    kl = [float(str(line["kl"])) for line in read_jsonl(tmp_path / "log.jsonl") if line["kl"] is not None]
    assert kl[0] == 0.0
    assert max(kl) > 1e-4
    gaps = [float(str(line["sampler_gap"])) for line in read_jsonl(tmp_path / "log.jsonl") if line["kl"] is not None]
    assert max(gaps) < 1e-4  # the engine writes with what the trainer has learned


# The engine


def texts(model: GPT, *, in_slots: bool = False) -> list[tuple[int, ...]]:
    sampling = Sampling(temperature=1.0, top_k=None, max_new_tokens=20, seed=3)
    made = Engine(model, in_slots=in_slots).generate([[1, 2, 3], [4, 5], [9]], n=4, sampling=sampling)
    return [completion.token_ids for completion in made]


def merged_model(lora: Lora) -> GPT:
    model = tiny_model().eval()
    lora.merge(model)
    return model


@pytest.mark.parametrize("in_slots", [False, True])
@pytest.mark.parametrize("large", [0, 2**20])
def test_the_engine_writes_what_the_merged_model_writes(
    large: int, in_slots: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "LARGE_LAYER", large)
    monkeypatch.setattr(linear, "LARGE_MATRIX", large)
    model = tiny_model().eval()
    plain, lora = texts(model, in_slots=in_slots), learned(model)
    expected = texts(merged_model(lora), in_slots=in_slots)
    with lora.attached(model):
        assert texts(model, in_slots=in_slots) == expected
        with torch.no_grad():
            lora.b[0].mul_(-1)
        assert texts(model, in_slots=in_slots) == texts(merged_model(lora), in_slots=in_slots) != expected
        with lora.off(model):
            assert texts(model, in_slots=in_slots) == plain
    assert texts(model, in_slots=in_slots) == plain != expected


@pytest.mark.parametrize("copies", [PackedWeights, CastWeights])
def test_copies_for_decoding_hold_the_very_numbers_of_a_merge(
    copies: type[PackedWeights] | type[CastWeights],
) -> None:
    model = tiny_model().eval()
    lora = learned(model)
    merged = merged_model(lora)
    with lora.attached(model):
        weights = copies(model, max_bytes=2**20) if copies is PackedWeights else copies(model)  # type: ignore[call-arg]
        held = weights.merged if isinstance(weights, PackedWeights) else weights.layers
        names = {layer: name for name, layer in model.named_modules()}
        assert {names[layer] for layer in held} == set(lora.names)
        for layer, weight in held.items():
            assert isinstance(weight, Tensor)
            assert torch.equal(weight, merged.get_parameter(f"{names[layer]}.weight"))
        with weights.used(), torch.no_grad():
            ids = torch.tensor([[1, 2, 3]])
            assert torch.equal(model(ids), merged(ids))
    if Packed.is_possible():
        assert not PackedWeights(model, max_bytes=2**20).merged


# Settings


def test_where_no_learning_rate_is_given_it_is_ten_times_the_default() -> None:
    for kind, default in ((SFTConfig, 1e-3), (GRPOConfig, 1e-3)):
        assert kind().learning_rate == default
        assert kind(lora=LORA).learning_rate == 10 * default
        assert replace(kind(), lora=LORA).learning_rate == 10 * default
        assert replace(kind(learning_rate=default), lora=LORA).learning_rate == default
        assert replace(kind(lora=LORA), steps=3).learning_rate == 10 * default  # once only
    assert SFTConfig(learning_rate=Default(1e-4), lora=LORA).learning_rate == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rank": -1}, "rank is -1; it cannot be negative"),
        ({"rank": 4, "alpha": 0.0}, "alpha is 0.0; it must be above 0"),
        ({"alpha": 32.0}, "rank is 0, so that the other settings of LoRA have no effect"),
        (
            {"rank": 4, "targets": "attn.qvk"},
            "targets names 'attn.qvk'.*did you mean \"attn.qkv\"\\? There are attn.qkv, ",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        LoraConfig(**fields)  # type: ignore[arg-type]


def test_what_does_not_go_with_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="optimizer is muon, but LoRA's matrices learn by adamw"):
        SFTConfig(optimizer="muon", lora=LORA)
    with pytest.raises(UserError, match=r"lora\.targets names mlp\.gate, which the blocks of a gpt2 model do not have"):
        fine_tuned(tmp_path, replace(SFT, lora=LoraConfig(2, targets="mlp.gate,mlp.up")))
    with pytest.raises(UserError, match=r"lora\.rank is 17, but no matrix of this model's blocks has a rank above 16"):
        fine_tuned(tmp_path, replace(SFT, lora=LoraConfig(17)))
