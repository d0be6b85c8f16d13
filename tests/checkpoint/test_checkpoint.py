"""Model directories: bitwise round trips, what is added on loading, what is refused and how."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from conftest import TEXTS, shared_data, tiny_config
from huggingface_hub import constants, errors
from safetensors.torch import load_file, save_file

from nanogpt_edit.checkpoint import checkpoint, weights
from nanogpt_edit.checkpoint.tensors import tensor_sha256
from nanogpt_edit.common import terminal
from nanogpt_edit.common.card import CARD
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.model.positions import RopeScaling
from nanogpt_edit.model.tokenizer import Tokenizer


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was said to the person."""
    lines: list[str] = []
    monkeypatch.setattr(terminal, "say", lambda message, **_: lines.append(message))
    return lines


@pytest.fixture
def saved(speaking_gpt: GPT, tmp_path: Path) -> Path:
    """A saved two-layer GPT-2 with its tokenizer."""
    checkpoint.save(speaking_gpt, tmp_path / "model", lineage_note="pretrained on a page")
    return tmp_path / "model"


def edit_json(file: Path, **changes: object) -> None:
    """Change entries of a JSON file; None takes an entry out."""
    entries = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in entries.items() if value is not None}))


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def without_reasoning_tokens(directory: Path) -> None:
    """Take the four tokens out of a saved tokenizer, as if the model came from someone else."""
    entries = json.loads((directory / "tokenizer.json").read_text())
    entries["added_tokens"] = entries["added_tokens"][:1]
    (directory / "tokenizer.json").write_text(json.dumps(entries))


# Round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_comes_back_bit_for_bit(any_gpt: GPT, tokenizer: Tokenizer, dtype: torch.dtype, tmp_path: Path) -> None:
    any_gpt.to(dtype)
    any_gpt.lineage = (LineageEntry("taken", "loaded from somewhere"),)
    checkpoint.save(any_gpt, tmp_path / "m", tokenizer=tokenizer, lineage_note="trained a little")
    loaded = checkpoint.load(tmp_path / "m")
    assert loaded.config == any_gpt.config
    assert (loaded.dtype, loaded.training) == (dtype, False)
    assert loaded.lineage == any_gpt.lineage
    assert list(map(str, loaded.lineage)) == ["loaded from somewhere", "trained a little"]
    assert checkpoint.fingerprint(loaded) == checkpoint.fingerprint(any_gpt)
    for (name, weight), (other, expected) in zip(loaded.named_parameters(), any_gpt.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(weight, expected), name
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    again = tmp_path / "again" / "m"
    checkpoint.save(loaded, again)
    for file in (tmp_path / "m").iterdir():
        if file.name != CARD:  # whose title is the place
            assert file.read_bytes() == (again / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param("gpt2", {"bias": False, "qkv_bias": False}, id="no biases"),
        pytest.param("gpt2", {"activation": "gelu"}, id="exact gelu"),
        pytest.param("gpt2", {"activation": "relu"}, id="relu"),
        pytest.param("gpt2", {"mlp_dim": 40, "tie_embeddings": False, "norm_eps": 1e-6}, id="untied"),
        pytest.param(
            "llama",
            {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16), "rope_theta": 5e5, "tie_embeddings": True},
            id="llama 3",
        ),
        pytest.param("llama", {"model_type": "qwen2", "qkv_bias": True}, id="qwen2"),
        pytest.param("llama", {"model_type": "qwen3", "qk_norm": True, "head_dim": 16}, id="qwen3"),
        pytest.param("llama", {"bias": True, "qkv_bias": True, "n_kv_head": None}, id="llama with biases"),
    ],
)
def test_variants_of_a_family_come_back(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = GPT(replace(tiny_config(family), **changes), seed=1)
    checkpoint.save(model, tmp_path / "m")
    loaded = checkpoint.load(tmp_path / "m")
    assert loaded.config == model.config
    assert checkpoint.fingerprint(loaded) == checkpoint.fingerprint(model)


def test_large_models_are_saved_in_shards(any_gpt: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 40_000)
    checkpoint.save(any_gpt, tmp_path / "m")
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in any_gpt.parameters())
    assert {p.name for p in (tmp_path / "m").glob("*.safetensors")} == files
    loaded = checkpoint.load(tmp_path / "m")
    assert checkpoint.fingerprint(loaded) == checkpoint.fingerprint(any_gpt)
    (tmp_path / "m" / min(files)).unlink()
    with pytest.raises(UserError, match=f"{min(files)}: no such file, though the model's index lists it"):
        checkpoint.load(tmp_path / "m")


def test_another_dtype_can_be_asked_for(saved: Path) -> None:
    exact, short = checkpoint.load(saved), checkpoint.load(saved, dtype=torch.bfloat16)
    assert short.dtype == torch.bfloat16
    assert torch.equal(short.embed.weight, exact.embed.weight.bfloat16())


def test_dropout_of_a_loaded_config_is_ignored(saved: Path) -> None:
    edit_json(saved / "config.json", attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1)
    assert checkpoint.load(saved).config.dropout == 0.0


def test_what_stops_generation_is_written(saved: Path, tokenizer: Tokenizer) -> None:
    generation = json.loads((saved / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.answer_end, tokenizer.eos_id]


def test_loading_needs_little_more_memory_than_the_model(tmp_path: Path) -> None:
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")  # the peak starts anew from here
    except OSError:
        pytest.skip("the peak of this process' memory cannot be measured here")
    # Three tensors of 35 MB each: memory of that size comes fresh from the system and goes back to it.
    config = replace(tiny_config("gpt2", vocab_size=17_000, block_size=17_000), n_embd=512, tie_embeddings=False)
    checkpoint.save(GPT(config), tmp_path / "m")
    size = (tmp_path / "m" / "model.safetensors").stat().st_size

    def resident(kind: str) -> int:
        (found,) = re.findall(rf"{kind}:\s+(\d+) kB", status.read_text())
        return 1024 * int(found)

    reset.write_text("5")
    before = resident("VmRSS")
    model = checkpoint.load(tmp_path / "m")
    ratio = (resident("VmHWM") - before) / size
    assert 0.7 < ratio < 1.5  # 2.0 where a file stays mapped while its tensors are copied
    assert model.config == config


# Saving is whole or nothing


def test_a_failed_save_leaves_the_old_model(saved: Path, speaking_gpt: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    monkeypatch.setattr(Tokenizer, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoint.save(speaking_gpt, saved, lineage_note="never")
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_a_model_replaces_a_model_but_nothing_else(saved: Path, speaking_gpt: GPT, tmp_path: Path) -> None:
    checkpoint.save(speaking_gpt, saved, lineage_note="again")
    assert checkpoint.load(saved).lineage[-1] == LineageEntry("note", "again")
    (saved / "thesis.tex").write_text("…")
    with pytest.raises(UserError, match=r'not replaced by the model, it holds "thesis\.tex"'):
        checkpoint.save(speaking_gpt, saved)
    assert (saved / "thesis.tex").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file is in the place"):
        checkpoint.save(speaking_gpt, tmp_path / "file")


def test_a_mix_that_no_architecture_expresses_is_refused_before_writing(tmp_path: Path) -> None:
    model = GPT(replace(tiny_config("gpt2"), norm="rmsnorm"), seed=0)
    with pytest.raises(UserError, match=r"gpt2 .* has no norm = 'rmsnorm'; set norm to 'layernorm'"):
        checkpoint.save(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# Fingerprints


def test_a_fingerprint_is_the_hash_of_what_it_says() -> None:
    tensor = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    expected = hashlib.sha256(b"torch.float32 2 " + struct.pack("<2q4f", 2, 2, 1.0, -2.0, 0.5, 3.0)).hexdigest()
    assert tensor_sha256(tensor) == expected
    assert tensor_sha256(tensor.T.contiguous().T) == expected  # the numbers, not their order in memory


def test_a_fingerprint_sees_the_last_bit_the_shape_and_the_dtype(gpt: GPT) -> None:
    before = checkpoint.fingerprint(gpt)
    assert checkpoint.fingerprint(GPT(gpt.config, seed=0)) == before
    weight = gpt.blocks[1].mlp.down.weight.detach()
    weight.view(torch.int32)[3, 5] ^= 1
    assert checkpoint.fingerprint(gpt) != before
    weight.view(torch.int32)[3, 5] ^= 1
    assert checkpoint.fingerprint(gpt) == before
    assert tensor_sha256(weight) != tensor_sha256(weight.reshape(-1))
    zeros = torch.zeros(4)
    assert tensor_sha256(zeros) != tensor_sha256(zeros.int())


# Rows for the reasoning tokens


def test_missing_rows_are_added_at_the_mean_and_said(saved: Path, tokenizer: Tokenizer, said: list[str]) -> None:
    original = checkpoint.load(saved)
    edit_tensors(saved, lambda t: t.update({"transformer.wte.weight": t["transformer.wte.weight"][:296].clone()}))
    edit_json(saved / "config.json", vocab_size=296)
    without_reasoning_tokens(saved)
    assert said == []
    grown = checkpoint.load(saved)
    assert grown.config.vocab_size == 320  # 300 rounded up to a multiple of 64
    assert grown.tokenizer is not None
    assert grown.tokenizer.reasoning_ids == (296, 297, 298, 299)
    known, new = grown.embed.weight[:296], grown.embed.weight[296:]
    assert torch.equal(known, original.embed.weight[:296])
    distance = (new - known.mean(dim=0)).abs()
    assert distance.min() > 0
    assert distance.max() < 0.5 * known.std()
    assert torch.unique(new, dim=0).shape[0] == 24
    assert len(said) == 1
    assert "grew by 24 rows to 320" in said[0]
    assert "embedding rows 296 to 319 set to the mean row plus noise" in said[0]
    assert str(grown.lineage[-1]) in said[0]
    assert checkpoint.fingerprint(checkpoint.load(saved)) == checkpoint.fingerprint(grown)  # seeded

    said.clear()
    checkpoint.save(grown, saved)
    assert checkpoint.fingerprint(checkpoint.load(saved)) == checkpoint.fingerprint(grown)
    assert said == []


def test_padding_rows_are_used_where_there_are_some(saved: Path, said: list[str]) -> None:
    without_reasoning_tokens(saved)
    original = load_file(saved / "model.safetensors")["transformer.wte.weight"]
    model = checkpoint.load(saved)
    assert model.config.vocab_size == 300
    assert torch.equal(model.embed.weight[:296], original[:296])
    assert not torch.isclose(model.embed.weight[296:], original[296:]).all(dim=1).any()
    assert "in the vocabulary's padding" in said[0]


def test_an_untied_head_grows_too(tokenizer: Tokenizer, tmp_path: Path, said: list[str]) -> None:
    model = GPT(tiny_config("llama", vocab_size=296), seed=0)
    checkpoint.save(model, tmp_path / "m", tokenizer=tokenizer)
    without_reasoning_tokens(tmp_path / "m")
    grown = checkpoint.load(tmp_path / "m")
    assert grown.head is not None
    assert model.head is not None
    assert grown.head.weight.shape == (320, 32)
    assert torch.equal(grown.head.weight[:296], model.head.weight)
    assert torch.allclose(grown.head.weight[296:].mean(dim=0), model.head.weight.mean(dim=0), atol=3e-3)


# nanoGPT's ckpt.pt


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


def nanogpt_file(file: Path, config: GPTConfig, *, prefix: str = "_orig_mod.") -> GPT:
    """Write a ckpt.pt as nanoGPT does, and return the model that is in it."""
    model = GPT(config, seed=3).eval()
    names = {"embed": "wte", "positions": "wpe", "norm1": "ln_1", "norm2": "ln_2", "norm": "ln_f", "blocks": "h"}
    names |= {"qkv": "c_attn", "out": "c_proj", "up": "c_fc", "down": "c_proj"}
    state = {
        prefix + "transformer." + ".".join(names.get(part, part) for part in name.split(".")): weight.detach().clone()
        for name, weight in model.named_parameters()
    }
    state[prefix + "lm_head.weight"] = state[prefix + "transformer.wte.weight"]
    state[prefix + "transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)  # the mask of older versions
    sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "dropout")
    torch.save(
        {
            "model": state,
            "model_args": {size: getattr(config, size) for size in sizes} | {"dropout": 0.2},
            "optimizer": {"state": {0: torch.zeros(3)}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]},
            "iter_num": 2000,
            "best_val_loss": torch.tensor(3.1),
            "config": {"dataset": "openwebtext"},
        },
        file,
    )
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_a_nanogpt_checkpoint_is_converted(bias: bool, tmp_path: Path, said: list[str]) -> None:
    config = replace(tiny_config("gpt2"), activation="gelu", bias=bias, qkv_bias=bias)
    expected = nanogpt_file(tmp_path / "ckpt.pt", config)
    model = checkpoint.load(tmp_path / "ckpt.pt")
    assert model.config == config
    assert checkpoint.fingerprint(model) == checkpoint.fingerprint(expected)
    assert "iteration 2000" in said[0]
    assert "_orig_mod taken off" in said[0]
    assert ("without biases" in said[0]) is not bias
    assert "no tokenizer" in said[1]
    checkpoint.save(model, tmp_path / "m", lineage_note="kept")
    again = checkpoint.load(tmp_path / "m")
    assert checkpoint.fingerprint(again) == checkpoint.fingerprint(expected)
    assert "nanoGPT checkpoint ckpt.pt (iteration 2000)" in str(again.lineage[0])
    assert again.config == config


def test_a_nanogpt_checkpoint_with_gpt2s_vocabulary_keeps_its_padding(tmp_path: Path, said: list[str]) -> None:
    shutil.copy(shared_data("gpt2_tokenizer") / "tokenizer.json", tmp_path)
    config = GPTConfig(vocab_size=50304, block_size=16, n_layer=1, n_head=1, n_embd=4, activation="gelu")
    expected = nanogpt_file(tmp_path / "ckpt.pt", config, prefix="")
    model = checkpoint.load(tmp_path / "ckpt.pt")
    assert model.tokenizer is not None
    assert model.tokenizer.think_start == 50257
    assert torch.equal(model.embed.weight, expected.embed.weight)  # the four tokens may have been learnt already
    assert len(said) == 1


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_never_run(write: str, tmp_path: Path) -> None:
    file, touched = tmp_path / "ckpt.pt", tmp_path / "touched"
    content = {"model": {"x": Evil(touched)}, "model_args": {}}
    if write == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"ckpt\.pt: holds more than tensors.*refused, nothing was run") as caught:
        checkpoint.load(file)
    assert "\n" not in str(caught.value)
    assert not touched.exists()


def test_other_pt_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "ckpt.pt"
    torch.save({"weights": torch.zeros(2)}, file)
    with pytest.raises(UserError, match="not a nanoGPT checkpoint"):
        checkpoint.load(file)
    torch.save({"model": {}, "model_args": {"n_layer": 2}}, file)
    with pytest.raises(UserError, match='no whole number "n_head"'):
        checkpoint.load(file)
    nanogpt_file(file, tiny_config("gpt2"))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(file)
    file.write_bytes(b"not at all")
    with pytest.raises(UserError, match=r"damaged|refused"):
        checkpoint.load(file)


# Hub names


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; the network is never asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def into_cache(cache: Path, name: str, directory: Path) -> Path:
    """Put a model directory into the cache under `name`, as a download would."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(directory, repository / "snapshots" / commit)
    return repository / "snapshots" / commit


def test_a_cached_hub_model_loads_without_network(saved: Path, hub_cache: Path) -> None:
    into_cache(hub_cache, "someone/small-gpt", saved)
    (saved / "lineage.json").unlink()
    into_cache(hub_cache, "small-gpt", saved)
    came = LineageEntry("taken", "loaded from someone/small-gpt", hub="someone/small-gpt")
    assert checkpoint.load("someone/small-gpt").lineage == (LineageEntry("note", "pretrained on a page"), came)
    model = checkpoint.load("small-gpt")
    assert model.lineage == (LineageEntry("taken", "loaded from small-gpt", hub="small-gpt"),)
    assert model.tokenizer is not None
    assert checkpoint.fingerprint(model) == checkpoint.fingerprint(checkpoint.load(saved))


def test_a_sharded_hub_model_loads(
    any_gpt: GPT, tokenizer: Tokenizer, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 40_000)
    checkpoint.save(any_gpt, tmp_path / "m", tokenizer=tokenizer)
    snapshot = into_cache(hub_cache, "a/b", tmp_path / "m")
    assert checkpoint.fingerprint(checkpoint.load("a/b")) == checkpoint.fingerprint(any_gpt)
    shard = min(snapshot.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(UserError, match=f"a/b: .*{shard.name} is neither in the local cache"):
        checkpoint.load("a/b")


def test_offline_the_missing_file_and_both_remedies_are_named(saved: Path, hub_cache: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is neither .*connect once.* pass its directory"):
        checkpoint.load("openai-community/gpt2-not-here")
    snapshot = into_cache(hub_cache, "a/b", saved)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"a/b: no such directory here. .*model\.safetensors is neither") as caught:
        checkpoint.load("a/b")
    assert "\n" not in str(caught.value)


def test_only_the_needed_files_are_fetched_and_of_one_commit(
    saved: Path, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, snapshot, fetched = tmp_path / "served", tmp_path / "c0ffee", set()
    shutil.copytree(saved, served)
    (served / "pytorch_model.bin").write_bytes(b"not for us")
    snapshot.mkdir()

    def download(name: str, file: str, *, revision: str | None, local_files_only: bool) -> str:
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not in the cache")
        assert (name, revision) == ("a/b", None if file == "config.json" else "c0ffee")
        if not (served / file).exists():
            raise errors.EntryNotFoundError("not in the repository")
        fetched.add(file)
        return str(shutil.copy(served / file, snapshot / file))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    assert checkpoint.fingerprint(checkpoint.load("a/b")) == checkpoint.fingerprint(checkpoint.load(saved))
    needed = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert fetched == needed | {"generation_config.json", "README.md", "lineage.json"}
    (served / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"a/b: the model has no model\.safetensors on the hub"):
        checkpoint.load("a/b")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, "accepted the model's licence.*hf auth login"),
        (errors.RepositoryNotFoundError, "no such directory here. Nor is there such a model on the Hugging Face hub"),
        (errors.HfHubHTTPError, r"config\.json cannot be fetched from the hub \(503\)"),
    ],
)
def test_what_the_hub_refuses_is_said(
    kind: type[errors.HfHubHTTPError], message: str, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str) -> None:
        error = kind.__new__(kind)
        error.args = ("503",)
        raise error

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    with pytest.raises(UserError, match=message):
        checkpoint.load("a/b")


# What is refused

Damage = Callable[[Path], Any]


def cut_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def swap_tokenizer(directory: Path, vocab_size: int) -> None:
    inner = Tokenizer.train(TEXTS * 2, vocab_size=vocab_size)
    inner.save(directory)


REFUSED: dict[str, tuple[Damage, str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "not a model directory, it has no config.json"),
    "damaged config": (lambda d: (d / "config.json").write_text("{"), "config.json: not valid JSON"),
    "missing key": (lambda d: edit_json(d / "config.json", n_layer=None), '"n_layer" is missing; a gpt2 config has it'),
    "nonsense value": (lambda d: edit_json(d / "config.json", n_head="4"), "\"n_head\" must be a whole .* found '4'"),
    "no architecture": (lambda d: edit_json(d / "config.json", model_type=None), '"model_type" is missing'),
    "unknown architecture": (
        lambda d: edit_json(d / "config.json", model_type="mamba"),
        '"mamba" is not supported; supported are gpt2, llama, qwen2, qwen3',
    ),
    "activation": (
        lambda d: edit_json(d / "config.json", activation_function="tanh"),
        'activation "tanh" is not supported',
    ),
    "attention scale": (
        lambda d: edit_json(d / "config.json", scale_attn_by_inverse_layer_idx=True),
        '"scale_attn_by_inverse_layer_idx": True is not supported',
    ),
    "quantisation": (
        lambda d: edit_json(d / "config.json", quantization_config={"quant_method": "gptq"}),
        "the weights are quantised .quantization_config.",
    ),
    "heads": (lambda d: edit_json(d / "config.json", n_head=5), "config.json: n_embd 32 is not a multiple of n_head 5"),
    "a nanoGPT folder": (
        lambda d: (d / "config.json").rename(d / "ckpt.pt"),
        r"it has no config.json. Its nanoGPT checkpoint is .*ckpt.pt; name that",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors and no model.safetensors.index"),
    "cut weights": (cut_weights, "model.safetensors: damaged or cut off"),
    "empty weights": (lambda d: (d / "model.safetensors").write_bytes(b""), "model.safetensors: damaged or cut off"),
    "missing tensor": (
        lambda d: edit_tensors(d, lambda t: t.pop("transformer.h.1.attn.c_proj.bias")),
        r"lack transformer\.h\.1\.attn\.c_proj\.bias, shape \(32,\)",
    ),
    "wrong shape": (
        lambda d: edit_json(d / "config.json", n_inner=96),
        r"transformer\.h\.0\.mlp\.c_fc\.weight has shape \(32, 128\), but the config calls for \(32, 96\)",
    ),
    "more layers than the config": (
        lambda d: edit_json(d / "config.json", n_layer=1),
        r"12 tensors have no place .*first: transformer\.h\.1\.attn\.c_attn\.bias, shape \(96,\)",
    ),
    "quantised": (
        lambda d: edit_tensors(d, lambda t: t.update({"transformer.ln_f.weight": torch.ones(32, dtype=torch.int8)})),
        r"transformer\.ln_f\.weight is quantised",
    ),
    "tokenizer too large": (lambda d: swap_tokenizer(d, 310), "ids up to 309, the embedding has 300 rows"),
    "tokenizer too small": (
        lambda d: swap_tokenizer(d, 270),
        "the model's texts end with id 295, .* last id is 269",
    ),
    "damaged lineage": (lambda d: (d / "lineage.json").write_text('{"lineage": 3}'), '"lineage" must be a list'),
}


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_directory_that_cannot_be_used_is_refused_in_one_line(damage: Damage, message: str, saved: Path) -> None:
    damage(saved)
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.load(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 'rotary scaling "yarn" is not supported'),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, '"low_freq_factor" is missing'),
        ({"partial_rotary_factor": 0.5}, '"partial_rotary_factor": 0.5 is not supported'),
        ({"hidden_act": "gelu"}, "\"hidden_act\": 'gelu' is not supported"),
        ({"use_sliding_window": True}, '"use_sliding_window": True is not supported'),
        ({"attention_bias": True}, '"mlp_bias" is False and "attention_bias" is True'),
        ({"num_key_value_heads": 3}, "n_head 4 is not a multiple of n_kv_head 3"),
    ],
)
def test_features_the_decoder_has_not_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    checkpoint.save(GPT(tiny_config("llama"), seed=0), tmp_path / "m")
    edit_json(tmp_path / "m" / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        checkpoint.load(tmp_path / "m")


def test_a_source_that_is_nowhere_is_named(saved: Path) -> None:
    with pytest.raises(UserError, match="runs/tiny/grqo: no such model directory"):
        checkpoint.load("runs/tiny/grqo")
    with pytest.raises(UserError, match=r"ckpt\.pt: no such model"):
        checkpoint.load("ckpt.pt")
    with pytest.raises(UserError, match="pass the file's directory"):
        checkpoint.load(saved / "model.safetensors")


def test_a_directory_without_a_tokenizer_still_loads(saved: Path) -> None:
    for file in saved.glob("tokenizer*"):
        file.unlink()
    assert checkpoint.load(saved).tokenizer is None
