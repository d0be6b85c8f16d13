"""Our decoder against transformers: the same weights give the same logits, the same cache, the same text.

The models are small and random, and transformers itself writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import TEXTS, tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache
from nanogpt_edit.model.tokenizer import Tokenizer

transformers.utils.logging.disable_progress_bar()

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
GPT2: dict[str, Any] = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
GPT2 |= {"bos_token_id": None, "eos_token_id": None}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,  # so low that all three ranges of the scaling occur among four frequencies
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}

FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2Config(**GPT2),
    "gpt2 untied, exact gelu": lambda: GPT2Config(
        **GPT2, tie_word_embeddings=False, activation_function="gelu", n_inner=48
    ),
    "gpt2, relu": lambda: GPT2Config(**GPT2, activation_function="relu"),
    "llama": lambda: LlamaConfig(**SIZES, num_key_value_heads=4),
    "llama, grouped, tied, llama 3 rope": lambda: LlamaConfig(
        **SIZES, num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE
    ),
    "llama, biases, wide heads": lambda: LlamaConfig(
        **SIZES, num_key_value_heads=1, attention_bias=True, mlp_bias=True, head_dim=16
    ),
    "qwen2, grouped, tied": lambda: Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2, untied": lambda: Qwen2Config(**SIZES, num_key_value_heads=4, rope_parameters={"rope_theta": 1e6}),
    "qwen3, grouped, tied": lambda: Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True),
    "qwen3, untied": lambda: Qwen3Config(**SIZES, num_key_value_heads=4, head_dim=8),
}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda name: name.replace(", ", "-").replace(" ", "_"))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random model that transformers wrote; every weight, norm and bias is random."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[request.param]())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            norm = weight.dim() == 1 and name.endswith("weight")
            weight.copy_(torch.randn_like(weight) * 0.06 + (1.0 if norm else 0.0))
    directory = tmp_path_factory.mktemp("hf")
    model.save_pretrained(directory)
    return directory


def theirs(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def token_ids(rows: int = 2, tokens: int = 60) -> torch.Tensor:
    return torch.randint(0, 97, (rows, tokens), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def cached_logits(model: GPT, ids: torch.Tensor, *, prompt: int) -> torch.Tensor:
    """Logits of a prefill of `prompt` tokens and then one token at a time."""
    rows, tokens = ids.shape
    cache = KVCache(model.config, rows=rows, capacity=tokens, device="cpu", dtype=model.dtype)
    steps = [model(ids[:, :prompt], view=cache)]
    steps += [model(ids[:, t : t + 1], view=cache) for t in range(prompt, tokens)]
    return torch.cat(steps, dim=1)


# Logits


@torch.no_grad()
def test_logits_equal_theirs_in_full_and_token_by_token(written: Path) -> None:
    ids = token_ids()
    ours, expected = checkpoint.load(written), theirs(written)(ids).logits
    assert expected.std() > 0.1  # the comparison means something
    assert (ours(ids) - expected).abs().max() < 1e-4
    assert (cached_logits(ours, ids, prompt=5) - expected).abs().max() < 1e-4


@torch.no_grad()
def test_logits_equal_theirs_in_bfloat16(written: Path) -> None:
    ids = token_ids()
    ours = checkpoint.load(written, dtype=torch.bfloat16)
    expected = theirs(written, torch.bfloat16)(ids).logits.float()
    assert (ours(ids).float() - expected).abs().max() < 3e-2
    assert (cached_logits(ours, ids, prompt=5).float() - expected).abs().max() < 3e-2


@torch.no_grad()
def test_what_we_save_gives_their_logits_again(written: Path, tmp_path: Path) -> None:
    ids = token_ids()
    ours = checkpoint.load(written)
    checkpoint.save(ours, tmp_path / "m")
    assert torch.equal(theirs(tmp_path / "m")(ids).logits, theirs(written)(ids).logits)
    assert checkpoint.fingerprint(checkpoint.load(tmp_path / "m")) == checkpoint.fingerprint(ours)
    original, saved = (json.loads((d / "config.json").read_text()) for d in (written, tmp_path / "m"))
    assert saved["model_type"] == original["model_type"]
    assert saved["architectures"] == original["architectures"]


@torch.no_grad()
def test_the_config_keys_of_transformers_4_mean_the_same(written: Path, tmp_path: Path) -> None:
    entries = json.loads((written / "config.json").read_text())
    expected = checkpoint.load(written).config
    if "rope_parameters" in entries:
        rope = entries.pop("rope_parameters")
        entries["rope_theta"] = rope.pop("rope_theta")
        entries["rope_scaling"] = rope if rope.pop("rope_type") == "llama3" else None
        if entries["rope_scaling"]:
            entries["rope_scaling"]["type"] = "llama3"
    entries["torch_dtype"] = entries.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(entries))
    (tmp_path / "model.safetensors").symlink_to(written / "model.safetensors")
    assert checkpoint.load(tmp_path).config == expected


@torch.no_grad()
def test_sharded_files_and_bare_decoders_load(written: Path, tmp_path: Path) -> None:
    model = theirs(written)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert torch.equal(checkpoint.load(tmp_path / "sharded")(token_ids()), checkpoint.load(written)(token_ids()))
    if model.config.tie_word_embeddings:
        model.base_model.save_pretrained(tmp_path / "bare")  # names without "transformer." or "model."
        assert torch.equal(checkpoint.load(tmp_path / "bare")(token_ids()), checkpoint.load(written)(token_ids()))


# Text


def greedy(model: GPT, prompt: list[int], *, stop_ids: set[int], new_tokens: int) -> list[int]:
    """The obvious loop: no cache, the most likely token, until a stop."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new_tokens):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            if ids[-1] in stop_ids:
                break
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_their_generate_writes_our_greedy_text(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    # Untied, or the model would repeat its last token for ever.
    config = replace(tiny_config(family, vocab_size=tokenizer.vocab_size), tie_embeddings=False)
    model = GPT(config, seed=0).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, 0.12, generator=generator)  # bolder than at initialisation: the text varies
    checkpoint.save(model, tmp_path / "m", tokenizer=tokenizer)
    their_model, their_tokenizer = theirs(tmp_path / "m"), AutoTokenizer.from_pretrained(tmp_path / "m")
    words = " ".join(TEXTS).split()
    prompts = [" ".join(words[i : i + 5]) for i in range(20)]
    stops = {tokenizer.answer_end, tokenizer.eos_id}
    stopped = 0
    for prompt in prompts:
        ids = tokenizer.encode(prompt)
        batch = their_tokenizer(prompt, return_tensors="pt")
        assert batch["input_ids"].tolist() == [ids]
        written = their_model.generate(**batch, max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
        ours = greedy(model, ids, stop_ids=stops, new_tokens=20)
        assert written == ours
        assert their_tokenizer.decode(written) == tokenizer.decode(ours)
        stopped += ours[-1] in stops
    assert 0 < stopped < 20  # both ways to end occur


# Tokenizers


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3"])
def test_autotokenizer_gives_our_ids(model_type: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = " ".join(TEXTS) + "<think>3 + 14 = 17</think><answer>17</answer><|endoftext|> 🇪🇬 e\u0301  \n don't 12345"
    assert loaded(text)["input_ids"] == tokenizer.encode(text)
    assert loaded.decode(tokenizer.encode(text)) == text
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert (
        loaded.decode(tokenizer.encode("<think>1</think><|endoftext|>"), skip_special_tokens=True) == "<think>1</think>"
    )


def test_autotokenizer_gives_our_ids_for_gpt2s_vocabulary(gpt2_vocabulary: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(gpt2_vocabulary)
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    text = "Don't stop: 1234 apples<think>\n\n  x</think> 🇪🇬"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer.encode(text)
