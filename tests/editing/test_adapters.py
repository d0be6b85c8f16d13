"""A patch as a LoRA adapter: what other programs add to the untouched weights is ΔW."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from conftest import tiny_config
from edit_world import PLAIN
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import nanogpt_edit as ne
from nanogpt_edit import cli
from nanogpt_edit.checkpoint.checkpoint import load, save
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.adapters import factors_of, write_gguf_adapter, write_peft
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch import EditPatch, LayerUpdate, down_name
from nanogpt_edit.editing.patch_files import save_patch
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer

# The subject ends the prompt: a value in the last layer is read where it stands.
FACTS = [
    Fact("The capital of France", "France", target_new="Rome", target_true="Paris"),
    Fact("The city of the Eiffel Tower", "Eiffel Tower", target_new="London", target_true="Paris"),
]
BLOCKS = torch.randint(0, 250, (40, 32), generator=torch.Generator().manual_seed(0))
CONFIG = replace(PLAIN, steps=5, n_prefixes=0, covariance_weight=0.01, clamp=20.0, weight_decay=0.0, kl_coef=0.0)
IDS = torch.randint(0, 290, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["gpt2", "llama"])
def edited(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> tuple[GPT, EditPatch]:
    """(model, a patch of it in both layers)."""
    config = replace(tiny_config(request.param, vocab_size=tokenizer.vocab_size), mlp_dim=64)
    model = GPT(config, seed=0).eval()
    model.tokenizer = tokenizer
    patch = edit_model(model, FACTS, CONFIG, covariance_blocks=BLOCKS)
    return model, patch.bound_to(model)


def test_what_peft_adds_to_the_base_gives_the_edited_models_logits(
    edited: tuple[GPT, EditPatch], tmp_path: Path
) -> None:
    model, patch = edited
    save(model, tmp_path / "base")
    write_peft(patch, model, tmp_path / "adapter", base="me/base")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert config["base_model_name_or_path"] == "me/base"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    for name in config["target_modules"]:
        a, b = (tensors.pop(f"base_model.model.{name}.lora_{letter}.weight") for letter in "AB")
        assert len(a) == b.shape[1] == config["r"]
        delta = config["lora_alpha"] / config["r"] * (b @ a)
        weight = theirs.get_submodule(name).weight
        weight.data += delta.T if config["fan_in_fan_out"] else delta
    assert not tensors
    with patch.applied(model), torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), rtol=0, atol=1e-5)
    facts = json.loads((tmp_path / "adapter" / "nanogpt_edit.json").read_text())["facts"]
    assert [fact["target_new"] for fact in facts] == ["Rome", "London"]


@pytest.mark.parametrize("activation", ["gelu_tanh", "relu"])
def test_what_llama_cpp_adds_to_the_exported_file_is_the_patch(
    tokenizer: Tokenizer, activation: Any, tmp_path: Path
) -> None:
    """A ReLU's second matrix is stored divided, and its adapter with it."""
    model = GPT(replace(tiny_config("gpt2", vocab_size=300), activation=activation), seed=0).eval()
    model.tokenizer = tokenizer
    patch = edit_model(model, FACTS, CONFIG, covariance_blocks=BLOCKS)
    ne.export_gguf(model, tmp_path / "base.gguf")
    write_gguf_adapter(patch, model, tmp_path / "adapter.gguf")
    with patch.applied(model):
        ne.export_gguf(model, tmp_path / "edited.gguf")
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["general.architecture"] == "gpt2"
    adapter = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    base, after = (
        {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / file).tensors}
        for file in ("base.gguf", "edited.gguf")
    )
    for layer in (0, 1):
        name = f"blk.{layer}.ffn_down.weight"
        a, b = adapter.pop(f"{name}.lora_a"), adapter.pop(f"{name}.lora_b")
        added = fields["adapter.lora.alpha"] / b.shape[1] * (b @ a)
        np.testing.assert_allclose(base[name] + added, after[name], rtol=0, atol=1e-6 * np.abs(after[name]).max())
        assert np.abs(added).max() > 0
    assert not adapter


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_learned_adapter_is_exported_with_all_its_matrices(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """q, k and v lie apart in Llama's files, and in llama.cpp's with q and k in another order."""
    model = GPT(replace(tiny_config(family, vocab_size=tokenizer.vocab_size), mlp_dim=64), seed=0).eval()
    model.tokenizer = tokenizer
    patch = edit_model(model, FACTS, replace(CONFIG, method="lora", ft_learning_rate=0.02, lora_rank=3))
    write_peft(patch, model, tmp_path / "peft", base="me/base")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    write_gguf_adapter(patch, model, tmp_path / "adapter.gguf")
    adapter = {each.name: np.array(each.data) for each in gguf.GGUFReader(tmp_path / "adapter.gguf").tensors}
    files: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for kind in ("base", "edited"):
        with patch.applied(model) if kind == "edited" else nullcontext():
            save(model, tmp_path / kind)
            ne.export_gguf(model, tmp_path / f"{kind}.gguf")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / kind)
        files[kind] = {name: weight.detach().numpy() for name, weight in theirs.named_parameters()}
        files[kind] |= {each.name: np.array(each.data) for each in gguf.GGUFReader(tmp_path / f"{kind}.gguf").tensors}
    for name in config["target_modules"]:
        a, b = (tensors[f"base_model.model.{name}.lora_{letter}.weight"].numpy() for letter in "AB")
        added = b @ a
        moved = files["edited"][f"{name}.weight"] - files["base"][f"{name}.weight"]
        np.testing.assert_allclose(added.T if config["fan_in_fan_out"] else added, moved, atol=1e-6)
        assert np.abs(moved).max() > 1e-3
    matrices = {name.rsplit(".", 1)[0] for name in adapter}
    assert len(matrices) == len(config["target_modules"]) == (8 if family == "gpt2" else 14)
    for name in matrices:
        moved = files["edited"][name] - files["base"][name]
        np.testing.assert_allclose(adapter[f"{name}.lora_b"] @ adapter[f"{name}.lora_a"], moved, atol=1e-6)


def test_factors_have_one_rank_and_never_more_than_the_matrix(edited: tuple[GPT, EditPatch]) -> None:
    _, patch = edited
    generator = torch.Generator().manual_seed(0)

    def random(*columns: int) -> EditPatch:
        updates = {
            layer: LayerUpdate(
                left=torch.randn(32, count, generator=generator),
                right=torch.randn(count, 64, generator=generator),
                keys=torch.zeros(64, count),
                expected_sha256="",
            )
            for layer, count in enumerate(columns)
        }
        return replace(patch, layers=updates)

    for columns, rank in (((3, 5), 5), ((40,), 32)):
        made = random(*columns)
        for layer in made.layers:
            factors = factors_of(made)[down_name(layer)]
            assert (factors.a.shape, factors.b.shape) == ((rank, 64), (32, rank))
            torch.testing.assert_close(factors.b @ factors.a, made.layers[layer].delta().float(), atol=1e-4, rtol=0)


def test_the_verb_finds_the_model_of_a_run_or_is_told(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = GPT(tiny_config("gpt2", vocab_size=300), seed=0).eval()
    model.tokenizer = tokenizer
    patch = ne.edit(model, FACTS, method="ft", layers=(1,), steps=2).bound_to(model)
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    save(model, run / "grpo")
    save(GPT(model.config, seed=1), run / "base", tokenizer=tokenizer)
    for file in (run / "edits" / "mine.safetensors", elsewhere / "mine.safetensors"):
        save_patch(patch, file)
    beside = str(run / "edits" / "mine.safetensors")
    assert cli.main(["patch", "export", beside, "--to", "peft", str(tmp_path / "a")]) == 0
    assert f"The adapter for {run / 'grpo'}: {tmp_path / 'a'}" in capsys.readouterr().out
    alone = ["patch", "export", str(elsewhere / "mine.safetensors"), "--to", "gguf"]
    assert cli.main([*alone, str(tmp_path / "a.gguf"), "--model", str(run / "grpo")]) == 0
    capsys.readouterr()
    for arguments, sentence in (
        ([*alone, str(tmp_path / "b.gguf")], "is not beside it; name it with --model"),
        ([*alone, str(tmp_path / "b.gguf"), "--model", str(run / "base")], "made for other weights"),
        ([*alone, str(tmp_path / "a.gguf"), "--model", str(run / "grpo")], "a.gguf is there already"),
        ([*alone[:-1], "onnx", "x"], "'onnx' for argument '--to'. It is one of peft, gguf"),
        (alone, "'--to': it takes 2, found 1"),
    ):
        assert cli.main(arguments) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "b.gguf").exists()
    with pytest.raises(UserError, match="already applied"):
        patch.apply(loaded := load(run / "grpo"))
        write_peft(patch, loaded, tmp_path / "b", base="x")
