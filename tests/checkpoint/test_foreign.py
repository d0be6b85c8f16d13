"""Model files that are not as the config says, or not a model: read as transformers reads them, or refused with a word.

(What a directory lacks and what is damaged in it: test_model_checkpoint.py.)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, shared_cases, tiny_config
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from nanogpt_edit import cli
from nanogpt_edit.checkpoint import checkpoint, hub
from nanogpt_edit.common import files
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.size import check_fits, parameter_count
from nanogpt_edit.model.tokenizer import Tokenizer

IDS = torch.randint(0, 250, (2, 20), generator=torch.Generator().manual_seed(1))
NANOGPT = replace(tiny_config("gpt2", vocab_size=65), activation="gelu")


@pytest.fixture
def saved(any_gpt: GPT, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    checkpoint.save(any_gpt, tmp_path / "m", tokenizer=tokenizer)
    return tmp_path / "m"


def change_tensors(directory: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def change_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def nanogpt_state(model: GPT) -> dict[str, Tensor]:
    """The weights under nanoGPT's names."""
    names = {"embed": "wte", "positions": "wpe", "norm1": "ln_1", "norm2": "ln_2", "norm": "ln_f", "blocks": "h"}
    names |= {"qkv": "c_attn", "out": "c_proj", "up": "c_fc", "down": "c_proj"}
    state = {
        "transformer." + ".".join(names.get(part, part) for part in name.split(".")): weight.detach().clone()
        for name, weight in model.named_parameters()
    }
    return {**state, "lm_head.weight": state["transformer.wte.weight"]}


def nanogpt_file(file: Path, state: dict[Any, Any], **sizes: object) -> Path:
    known = {name: getattr(NANOGPT, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    torch.save({"model": state, "model_args": known | sizes, "iter_num": 3}, file)
    return file


# A head of its own


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_head_of_its_own_unties_the_model_as_in_transformers(family: str, tmp_path: Path) -> None:
    model = GPT(replace(tiny_config(family), tie_embeddings=False), seed=0).eval()
    checkpoint.save(model, tmp_path / "m")
    change_config(tmp_path / "m", tie_word_embeddings=True)
    loaded = checkpoint.load(tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert not loaded.config.tie_embeddings
    assert (loaded(IDS) - theirs(IDS).logits).abs().max() < 1e-4
    checkpoint.save(loaded, tmp_path / "again")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "again")(IDS).logits, theirs(IDS).logits)


@torch.no_grad()
def test_a_tied_head_that_is_written_out_stays_tied(tmp_path: Path) -> None:
    model = GPT(tiny_config("gpt2"), seed=0).eval()
    checkpoint.save(model, tmp_path / "m")
    change_tensors(tmp_path / "m", lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"].clone()})
    assert checkpoint.load(tmp_path / "m").config == model.config


@torch.no_grad()
def test_a_nanogpt_checkpoint_with_a_head_of_its_own(tmp_path: Path) -> None:
    model = GPT(NANOGPT, seed=3).eval()
    head = torch.randn(65, 32)
    loaded = checkpoint.load(nanogpt_file(tmp_path / "ckpt.pt", {**nanogpt_state(model), "lm_head.weight": head}))
    assert loaded.head is not None
    assert torch.equal(loaded.head.weight, head)
    assert torch.equal(loaded.embed.weight, model.embed.weight)


@torch.no_grad()
@pytest.mark.parametrize("name", ["models/llama_tied_other_head", "models/nanogpt_untied_ckpt.pt"])
def test_reported_models_with_a_head_of_their_own(name: str, tmp_path: Path) -> None:
    source = shared_cases(name)
    loaded = checkpoint.load(source)
    assert not loaded.config.tie_embeddings
    checkpoint.save(loaded, tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m" if source.is_file() else source)
    ids = IDS[:, :16] % 60
    known = loaded.tokenizer.first_added if loaded.tokenizer is not None else loaded.config.vocab_size
    assert (loaded(ids) - theirs(ids).logits)[..., :known].abs().max() < 1e-4


# Names


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module._orig_mod."]
)
def test_what_wraps_a_model_is_taken_off_its_names(prefix: str, saved: Path, tmp_path: Path) -> None:
    model = GPT(NANOGPT, seed=3)
    state = {prefix + name: tensor for name, tensor in nanogpt_state(model).items()}
    loaded = checkpoint.load(nanogpt_file(tmp_path / "ckpt.pt", state))
    assert checkpoint.fingerprint(loaded) == checkpoint.fingerprint(model)
    assert "taken off the names" in str(loaded.lineage[0])
    before = checkpoint.fingerprint(checkpoint.load(saved))
    change_tensors(saved, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    assert checkpoint.fingerprint(checkpoint.load(saved)) == before


def test_a_block_compiled_by_itself_is_found(saved: Path) -> None:
    before = checkpoint.fingerprint(checkpoint.load(saved))
    change_tensors(
        saved,
        lambda tensors: {
            name.replace(".h.1.", ".h.1._orig_mod.").replace("layers.1.", "layers.1._orig_mod."): tensor
            for name, tensor in tensors.items()
        },
    )
    assert checkpoint.fingerprint(checkpoint.load(saved)) == before


def test_a_reported_checkpoint_of_distributed_training() -> None:
    assert checkpoint.load(shared_cases("models/nanogpt_module_prefix_ckpt.pt")).config.tie_embeddings


def test_the_same_weight_under_two_names_is_refused(saved: Path) -> None:
    change_tensors(saved, lambda t: {**t, **{"module." + name: tensor + 1 for name, tensor in list(t.items())[:1]}})
    with pytest.raises(UserError, match=r"are the same weight; keep one of them"):
        checkpoint.load(saved)


# What is no language model


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("v_head.summary.weight", "v_head.summary.bias"), "the value head of PPO training.*pretrained_model"),
        (("pretrained_model.v_head.summary.weight",), "the value head of PPO training"),
        (("score.weight",), "the head of a classifier or reward model.*pass the language model it was made from"),
        (("model.layers.0.self_attn.q_proj.lora_A.weight",), "a LoRA adapter.*merge_and_unload"),
    ],
)
def test_parts_of_other_models_are_named(names: tuple[str, ...], message: str, saved: Path) -> None:
    change_tensors(saved, lambda tensors: tensors | {name: torch.zeros(1, 32) for name in names})
    with pytest.raises(UserError, match=message):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "weights.pkl"])
def test_pickled_weights_are_named_and_never_opened(name: str, saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / name)
    with pytest.raises(UserError, match=rf"{name} is not read, for a pickle can run code.*save_pretrained"):
        checkpoint.load(saved)


# Sizes


def test_the_estimate_counts_what_a_model_has(any_gpt: GPT) -> None:
    assert parameter_count(any_gpt.config) == sum(weight.numel() for weight in any_gpt.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": False, "qkv_bias": False},
        {"mlp_dim": 40, "tie_embeddings": False},
        {"model_type": "qwen3", "norm": "rmsnorm", "positions": "rope", "activation": "swiglu", "bias": False}
        | {"qkv_bias": False, "qk_norm": True, "head_dim": 16, "n_kv_head": 2},
        {"model_type": "qwen2", "norm": "rmsnorm", "positions": "rope", "activation": "swiglu", "bias": False},
    ],
    ids=["no biases", "untied", "qwen3", "qwen2"],
)
def test_the_estimate_knows_every_family(changes: dict[str, Any]) -> None:
    config = replace(tiny_config("gpt2"), **changes)
    assert parameter_count(config) == sum(weight.numel() for weight in GPT(config).parameters())


HUGE = 10**9


@pytest.mark.parametrize(
    "changes", [{"n_layer": HUGE}, {"n_embd": HUGE}, {"vocab_size": HUGE}, {"n_positions": HUGE}, {"n_inner": HUGE}]
)
def test_sizes_of_a_config_are_checked_before_anything_is_made(changes: dict[str, int], tmp_path: Path) -> None:
    checkpoint.save(GPT(tiny_config("gpt2"), seed=0), tmp_path / "m")
    change_config(tmp_path / "m", **changes)
    started = time.monotonic()
    with pytest.raises(
        UserError, match=r"/m: (a model of n_layer .*iB of memory, and this machine has|the config has n_l)"
    ):
        checkpoint.load(tmp_path / "m")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("changes", [{"n_layer": HUGE}, {"n_embd": HUGE}, {"vocab_size": HUGE}, {"n_layer": 100_000}])
def test_sizes_of_a_nanogpt_checkpoint_are_checked_too(changes: dict[str, int], tmp_path: Path) -> None:
    file = nanogpt_file(tmp_path / "ckpt.pt", nanogpt_state(GPT(NANOGPT)), **changes)
    with pytest.raises(UserError, match=r"ckpt.pt: (a model of n_layer|the config has n_layer .* only 29 tensors)"):
        checkpoint.load(file)


def test_a_new_models_sizes_are_checked() -> None:
    for changes in ({"n_layer": HUGE}, {"n_embd": HUGE}, {"vocab_size": 10**12}, {"block_size": 10**12}):
        with pytest.raises(UserError, match="iB of memory, and this machine has .*iB; choose smaller sizes"):
            GPT(replace(tiny_config("gpt2"), **changes))
    check_fits(GPTConfig(vocab_size=50304, block_size=1024, n_layer=12, n_head=12, n_embd=768))


@pytest.mark.parametrize("name", ["n_head", "n_layer", "n_embd", "vocab_size", "block_size"])
@pytest.mark.parametrize("size", [0, -3, True, 2.5, None, "4"])
def test_sizes_that_are_none_are_named(name: str, size: object, tmp_path: Path) -> None:
    file = nanogpt_file(tmp_path / "ckpt.pt", nanogpt_state(GPT(NANOGPT)), **{name: size})
    with pytest.raises(UserError, match=rf'ckpt.pt: "model_args".*{name}.*({size}|must be at least 1)'):
        checkpoint.load(file)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({0: torch.zeros(2), 1: torch.zeros(2)}, "must hold tensors by their names; the entry 0 is none"),
        ({"transformer.wte.weight": 3}, "the entry 'transformer.wte.weight' is none"),
        ({"transformer.wte.weight": torch.zeros(65, 32).to_sparse()}, "transformer.wte.weight is quantised"),
        ({"transformer.wte.weight": torch.zeros(65, 32, device="meta")}, "transformer.wte.weight is quantised"),
    ],
)
def test_state_dictionaries_that_hold_something_else(state: dict[Any, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        checkpoint.load(nanogpt_file(tmp_path / "ckpt.pt", {**nanogpt_state(GPT(NANOGPT)), **state}))


# Values in JSON


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_token_id": "</s>"}, "\"eos_token_id\" must be a token id or a list of them, found '</s>'"),
        ({"eos_token_id": [5, None]}, "found None"),
        ({"eos_token_id": {"id": 5}}, "found {'id': 5}"),
        ({"eos_token_id": [-1]}, "found -1"),
        ({"eos_token_id": True}, "found True"),
        ({"vocab_size": 10**30}, '"vocab_size" must be a whole number from 1 to'),
        ({"n_positions": 10**30, "max_position_embeddings": 10**30}, "must be a whole number from 1 to"),
        ({"layer_norm_epsilon": 10**200, "rms_norm_eps": 10**200}, "must be a finite number"),
    ],
)
def test_entries_of_a_config_that_make_no_sense(changes: dict[str, object], message: str, saved: Path) -> None:
    (saved / "generation_config.json").unlink()
    change_config(saved, **changes)
    with pytest.raises(UserError, match=message):
        checkpoint.load(saved)


def test_a_byte_order_mark_is_read_over(saved: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "lineage.json"):
        (saved / name).write_bytes(b"\xef\xbb\xbf" + (saved / name).read_bytes())
    assert checkpoint.load(saved).tokenizer is not None


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "lineage.json"])
def test_endless_nesting_is_named(name: str, saved: Path) -> None:
    (saved / name).write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(UserError, match=rf"{name}: not valid JSON \(nested too deeply\)"):
        checkpoint.load(saved)


# What `info` says


def told(source: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert cli.main(["info", str(source)]) == 0
    return dict(line.split("  ", maxsplit=1) for line in capsys.readouterr().out.splitlines())


def swap(directory: Path, **training: Any) -> None:
    Tokenizer.train([text.upper() for text in TEXTS], **training).save(directory)


def test_info_tells_a_tokenizer_of_another_model(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "perhaps" not in told(saved, capsys)["tokenizer"]
    swap(saved, vocab_size=300)
    found = told(saved, capsys)["tokenizer"]
    assert "perhaps another model's: it is not the one that the model was saved with (lineage.json)" in found
    (saved / "lineage.json").unlink()
    assert "perhaps" not in told(saved, capsys)["tokenizer"]  # the same ids end a text in both
    change_config(saved, eos_token_id=[7, 8])
    found = told(saved, capsys)["tokenizer"]
    assert "perhaps another model's: it ends texts with id 295, config.json with 7, 8" in found


def test_info_tells_a_tokenizer_too_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(GPT(tiny_config("llama", vocab_size=2000), seed=0), tmp_path / "m")
    swap(tmp_path / "m", vocab_size=300)
    assert "1,700 of the embedding's 2,000 rows have no token in it" in told(tmp_path / "m", capsys)["tokenizer"]


def test_info_tells_a_missing_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(GPT(tiny_config("gpt2"), seed=0), tmp_path / "m")
    found = told(tmp_path / "m", capsys)["tokenizer"].strip()
    assert found.startswith("none: without one the model can neither read nor write; put its tokenizer.json beside")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_info_tells_weights_that_are_no_numbers(value: float, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(saved, capsys)["weights"].strip() == "all finite"
    model = checkpoint.load(saved)
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[0, :3] = value
        model.norm.weight[5] = value
    checkpoint.save(model, saved)
    count = len(list(model.parameters()))
    assert (
        f"4 are NaN or infinite, in 2 of {count} tensors (first: blocks.1.mlp.down.weight)"
        in told(saved, capsys)["weights"]
    )


# Places


def test_a_misspelt_folder_is_answered_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("base", "sft", "grpo"):
        (tmp_path / "runs" / "tiny" / name).mkdir(parents=True)
    for source, message in {
        "runs/tinny/grpo": "no such model directory or file; did you mean runs/tiny/grpo?",
        "runs/tiny/gropo": "did you mean runs/tiny/grpo?",
        "rums/tinny/bse": "did you mean runs/tiny/base?",
        "runs/tiny/edited-twice": "nearest folder that exists is runs/tiny, which holds base, grpo, sft.",
        "runs/tinny": "runs/tinny: no such directory here; did you mean runs/tiny? If it is a model of the hub: ",
        "elsewhere/entirely/model": "no such model directory or file.",
        str(tmp_path / "runs" / "tiny" / "grpq"): f"did you mean {tmp_path}/runs/tiny/grpo?",
    }.items():
        with pytest.raises(UserError) as caught:
            checkpoint.load(source)
        assert message in str(caught.value)


def test_a_long_folder_is_not_listed_whole(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}").mkdir()
    assert files.nearest(tmp_path / "xyz").endswith("00, 01, 02, 03, 04, 05, 06, 07, ….")


@pytest.mark.parametrize("name", ["runs--mine", "runs/..", "a..b", "model-", "model.", "-model", "runs/tiny/grpo", "é"])
def test_what_the_hub_allows_for_no_name_is_never_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no run is
    assert not hub.is_name(name)
    with pytest.raises(UserError, match="no such model directory or file|not a model directory"):
        checkpoint.load(name)


def test_names_of_the_hub_are_names() -> None:
    for name in ("gpt2", "Qwen/Qwen2.5-0.5B", "HuggingFaceTB/SmolLM2-135M", "a/b_c.d-e", "x"):
        assert hub.is_name(name)
