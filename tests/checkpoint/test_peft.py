"""LoRA adapters in PEFT's format: what is written is the change that was learned, what is read is merged or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.checkpoint.checkpoint import fingerprint, load, save
from nanogpt_edit.checkpoint.peft import save_adapter
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.model.lora import Lora
from nanogpt_edit.model.tokenizer import Tokenizer

Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj"


def trained(family: str, tokenizer: Tokenizer, folder: Path) -> tuple[GPT, Lora]:
    """A model with learned adapters merged into it; its base and the adapter are in `folder`."""
    model = GPT(tiny_config(family, vocab_size=tokenizer.vocab_size), seed=0).eval()
    model.tokenizer = tokenizer
    save(model, folder / "base")
    lora = Lora(model, rank=3, alpha=12, seed=0)
    for b in lora.b:
        torch.nn.init.normal_(b, std=0.2, generator=torch.Generator().manual_seed(len(b)))
    lora.merge(model)
    model.lineage = (*model.lineage, LineageEntry("sft", "SFT (LoRA of rank 3) for 5 steps"))
    save_adapter(lora, model, folder / "adapter", base=folder / "base")
    return model, lora


@pytest.fixture
def llama(tokenizer: Tokenizer, tmp_path: Path) -> tuple[GPT, Path]:
    return trained("llama", tokenizer, tmp_path)[0], tmp_path / "adapter"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_loaded_adapter_is_the_trained_model(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model, _ = trained(family, tokenizer, tmp_path)
    loaded = load(tmp_path / "adapter")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(loaded.get_parameter(name), weight, rtol=0, atol=1e-7)
    assert loaded.lineage == model.lineage
    assert load(tmp_path / "adapter", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_files_hold_the_formula(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """W + (alpha / r) B A, with q's part of the rows of ours: the first 32 of 64."""
    model, lora = trained("llama", tokenizer, tmp_path)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["fan_in_fan_out"]) == (3, 12.0, False)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(said["target_modules"]) == 2 * 2 * 7
    a, b = (tensors[f"{Q_PROJ}.lora_{letter}.weight"] for letter in "AB")
    place = lora.names.index("blocks.1.attn.qkv")
    assert torch.equal(a, lora.a[place])
    assert torch.equal(b, lora.b[place][: len(b)])
    base = load_file(tmp_path / "base" / "model.safetensors")["model.layers.1.self_attn.q_proj.weight"]
    merged = model.get_parameter("blocks.1.attn.qkv.weight").detach()[: len(b)]
    torch.testing.assert_close(base + 12 / 3 * b @ a, merged)


def change_tensors(adapter: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({name: each.clone() for name, each in change(load_file(file)).items()}, file)


def change_config(adapter: Path, **fields: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_an_adapter_of_others_changes_the_layers_it_names_with_an_a_of_their_own(llama: tuple[GPT, Path]) -> None:
    """q and v of one layer, scaled by alpha / √r, named by the ends of their names; nothing of ours in the folder."""
    _, adapter = llama
    (adapter / "nanogpt_edit.json").unlink()
    (adapter / "tokenizer.json").unlink()
    dice = torch.Generator().manual_seed(5)
    base = load(adapter.parent / "base")
    rows = {"q_proj": slice(0, 32), "v_proj": slice(48, 64)}
    made = {name: (torch.randn(4, 32, generator=dice), torch.randn(end.stop - end.start, 4, generator=dice))
            for name, end in rows.items()}  # fmt: skip
    names = {name: f"base_model.model.model.layers.0.self_attn.{name}" for name in rows}
    change_tensors(adapter, lambda _: {f"{names[n]}.lora_{letter}.weight": each for n in rows
                                       for letter, each in zip("AB", made[n], strict=True)})  # fmt: skip
    change_config(adapter, r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "v_proj"])
    loaded = load(adapter)
    expected = base.get_parameter("blocks.0.attn.qkv.weight").detach().clone()
    for name, (a, b) in made.items():
        expected[rows[name]] += 6 / 2 * b @ a
    torch.testing.assert_close(loaded.get_parameter("blocks.0.attn.qkv.weight").detach(), expected)
    for name, weight in base.named_parameters():
        assert name == "blocks.0.attn.qkv.weight" or torch.equal(weight, loaded.get_parameter(name))
    assert loaded.lineage[-1].sentence == "with the LoRA adapter adapter (rank 4)"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"r": 0}, '"r" is 0; a rank is a whole number, 1 at least'),
        ({"r": "3"}, '"r" is 3; a rank is a whole number'),
        ({"r": 4}, r"has shape \(3, \d+\), where the base model .* and the rank 4 call for \(4, \d+\)"),
        ({"lora_alpha": None}, '"lora_alpha" is None; it is a number'),
        ({"peft_type": "LOHA"}, "it is of the type LOHA; of adapters only LoRA's are read"),
        ({"use_dora": True}, "use_dora is set, which is not read; merge it with peft"),
        ({"bias": "all"}, "bias is set, which is not read"),
        ({"base_model_name_or_path": None}, 'it names no base model; say in "base_model_name_or_path" which it is'),
        ({"base_model_name_or_path": "/no/where/at/all"}, "its base model /no/where/at/all is not there; say in"),
        ({"target_modules": ["q_proj", "lm_head"]}, "it names the layer lm_head, of which .* has nothing"),
    ],
)
def test_what_an_adapter_says_wrongly_is_named(
    fields: dict[str, object], sentence: str, llama: tuple[GPT, Path]
) -> None:
    change_config(llama[1], **fields)
    with pytest.raises(UserError, match=sentence):
        load(llama[1])


A, B = f"{Q_PROJ}.lora_A.weight", f"{Q_PROJ}.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {**t, B: torch.ones(5, 3)}, r"has shape \(5, 3\), where .* call for \(32, 3\)"),
        (lambda t: {name: each for name, each in t.items() if name != B}, "q_proj has lora_A alone"),
        (
            lambda t: {**t, A.replace("q_proj", "c_attn"): t[A]},
            "changes model.layers.1.self_attn.c_attn, which",
        ),
        (
            lambda t: {**t, "base_model.model.model.embed_tokens.lora_embedding_A": t[A]},
            "is neither A nor B of a",
        ),
    ],
)
def test_matrices_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], sentence: str, llama: tuple[GPT, Path]
) -> None:
    change_tensors(llama[1], change)
    with pytest.raises(UserError, match=sentence):
        load(llama[1])


def test_an_adapter_goes_with_its_own_base_only_and_finds_it_when_both_have_moved(
    llama: tuple[GPT, Path], tmp_path: Path
) -> None:
    model, _ = llama
    (tmp_path / "elsewhere").mkdir()
    for each in ("base", "adapter"):
        (tmp_path / each).rename(tmp_path / "elsewhere" / each)
    moved = tmp_path / "elsewhere" / "adapter"
    assert fingerprint(load(moved))
    save(model, tmp_path / "elsewhere" / "base")
    with pytest.raises(UserError, match="it was trained on other weights than .*base holds now"):
        load(moved)
    (moved / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="it has no adapter_model.safetensors; other files are not read"):
        checkpoint.load(moved)
