"""Parts that do not learn keep their bits; all others learn; the model is given back as it came."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_stages
import torch
from tiny_stages import tiny_model

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.frozen import weights_under
from nanogpt_edit.model.lora_config import LoraConfig
from nanogpt_edit.training.sft_config import SFTConfig


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_named_keeps_its_bits_and_all_else_learns(
    stage: str, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = stage.upper()
    config = replace(
        getattr(tiny_stages, name), frozen=("blocks.0.mlp.down", "positions"), optimizer=optimizer, steps=4
    )
    monkeypatch.setattr(tiny_stages, name, replace(config, weight_decay=0.1, evaluate_every=100))
    trained = tiny_stages.run_stage(stage, tmp_path)
    before = dict(tiny_model().named_parameters())
    same = {name for name, weight in trained.named_parameters() if torch.equal(weight, before[name])}
    assert same == {"blocks.0.mlp.down.weight", "blocks.0.mlp.down.bias", "positions.weight"}
    assert all(weight.requires_grad for weight in trained.parameters())


def test_a_part_is_a_whole_name_or_what_lies_under_it() -> None:
    model = tiny_model()
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert {names[id(weight)] for weight in weights_under(model, ["blocks.1.norm1", "norm.bias"])} == {
        "blocks.1.norm1.weight",
        "blocks.1.norm1.bias",
        "norm.bias",
    }
    assert weights_under(model, []) == []


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (["blocks.0.mlp.dwn"], "names 'blocks.0.mlp.dwn', which the model does not have; did you mean"),
        (["blocks.1", "blocks"], None),
        (["block"], "names 'block', which the model does not have; did you mean \"blocks\"?"),
        (["embed", "positions", "blocks", "norm"], "names all of the model, so that nothing would learn"),
    ],
)
def test_a_wrong_part_earns_one_sentence(parts: list[str], sentence: str | None) -> None:
    if sentence is None:
        assert len(weights_under(tiny_model(), parts)) == 24
        return
    with pytest.raises(UserError) as caught:
        weights_under(tiny_model(), parts)
    assert sentence in str(caught.value)


def test_the_same_parts_are_the_same_setting_and_none_is_none() -> None:
    assert SFTConfig(frozen=("embed", "blocks.0", "embed")) == SFTConfig(frozen=("blocks.0", "embed"))
    with pytest.raises(UserError, match="frozen names nothing"):
        SFTConfig(frozen=())


def test_lora_leaves_all_weights_alone_already() -> None:
    with pytest.raises(UserError, match="with LoRA all do"):
        SFTConfig(frozen=("embed",), lora=LoraConfig(rank=2))
