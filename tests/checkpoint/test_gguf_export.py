"""A model as a GGUF file: what stands in it is what llama.cpp's own converter would write, and it comes back whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
import torch
from conftest import TEXTS, tiny_config
from gguf.constants import GGMLQuantizationType
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Inner
from tokenizers.decoders import ByteLevel
from transformers import AutoModelForCausalLM

import nanogpt_edit as ne
from nanogpt_edit.checkpoint.checkpoint import fingerprint, load, save
from nanogpt_edit.checkpoint.gguf_names import RELU_FACTOR
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.reasoning import REASONING_TEMPLATE, TAGS
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.model.positions import RopeScaling
from nanogpt_edit.model.tokenizer import Tokenizer

RMS = {"norm": "rmsnorm", "activation": "swiglu", "positions": "rope", "n_kv_head": 2, "mlp_dim": 64, "bias": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {**RMS, "qkv_bias": False},
    "qwen2": RMS,
    "qwen3": {**RMS, "qkv_bias": False, "qk_norm": True, "head_dim": 16},
}
IDS = torch.randint(0, 290, (2, 24), generator=torch.Generator().manual_seed(1))
LLAMA_3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def model_of(family: str, tokenizer: Tokenizer, **changes: Any) -> GPT:
    """A random model in which no weight is 0 or 1."""
    config = replace(tiny_config("gpt2", vocab_size=320), model_type=family, **FAMILIES[family] | changes)
    model = GPT(config, seed=0).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    model.tokenizer = tokenizer
    return model


def exported(model: GPT, folder: Path, **settings: Any) -> Path:
    ne.export_gguf(model, folder / "m.gguf", **settings)
    return folder / "m.gguf"


def contents(file: Path) -> tuple[dict[str, Any], dict[str, tuple[GGMLQuantizationType, np.ndarray]]]:
    """(metadata, tensors) by the reader of the `gguf` package; a tensor with its type."""
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: (tensor.tensor_type, np.array(tensor.data)) for tensor in reader.tensors}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_written_comes_back_to_the_bit(family: str, tied: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = model_of(family, tokenizer, tie_embeddings=tied)
    model.lineage = (LineageEntry("sft", "SFT for 3 steps", problems="mine.jsonl"),)
    back = load(exported(model, tmp_path))
    assert back.config == model.config
    assert fingerprint(back) == fingerprint(model)
    assert torch.equal(back(IDS), model(IDS))
    assert back.lineage[:1] == model.lineage
    assert back.tokenizer is not None
    assert back.tokenizer.vocabulary_sha256 == tokenizer.vocabulary_sha256
    assert [back.tokenizer.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_shapes_and_rows_are_those_of_llama_cpps_converter(
    family: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = model_of(family, tokenizer)
    save(model, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    fields, tensors = contents(exported(model, tmp_path))
    expected = dict(gguf_files.tensors_of(theirs))
    assert tensors.keys() == expected.keys()
    for name, numbers in expected.items():
        np.testing.assert_array_equal(tensors[name][1], numbers, err_msg=name)
    sizes = {key: value for key, value in gguf_files.described(theirs).items() if key != f"{family}.vocab_size"}
    assert {key: fields[key] for key in sizes} == pytest.approx(sizes)


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0"])
def test_matrices_take_the_type_and_vectors_and_positions_stay_float32(
    type: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = model_of("gpt2", tokenizer)
    fields, tensors = contents(exported(model, tmp_path, type=type))
    kind = GGMLQuantizationType[type.upper()]
    for name, (found, _) in tensors.items():
        vector = name.endswith(("bias", "norm.weight")) or name == "position_embd.weight"
        assert found == (GGMLQuantizationType.F32 if vector else kind), name
    assert fields["general.file_type"] == {"f16": 1, "bf16": 32, "q8_0": 7}[type]
    weight = model.blocks[1].mlp.up.weight.detach()
    back = load(tmp_path / "m.gguf").blocks[1].mlp.up.weight
    if type == "q8_0":  # 127 steps up to the largest of each 32 numbers; the width of a step is a float16
        step = weight.reshape(-1, 32).abs().amax(dim=1, keepdim=True) / 127
        assert ((back - weight).reshape(-1, 32).abs() <= 0.5 * step * 1.001 + 127 * step * 2**-11).all()
    else:
        dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[type]
        assert torch.equal(back, weight.to(dtype).float())


@pytest.mark.parametrize("type", ["f32", "bf16", "f16", "q8_0"])
def test_relu_is_written_as_a_gelu_that_equals_it(type: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """llama.cpp has GELU alone in a GPT-2."""
    model = model_of("gpt2", tokenizer, activation="relu")
    fields, tensors = contents(exported(model, tmp_path, type=type))
    assert fields["gpt2.hidden_activation"] == "relu"
    back = load(tmp_path / "m.gguf")
    assert back.config == model.config
    if type != "f32":
        kinds = {name: found for name, (found, _) in tensors.items() if "ffn" in name and name.endswith("weight")}
        assert kinds["blk.0.ffn_down.weight"] == GGMLQuantizationType.F32  # small numbers
        assert kinds["blk.0.ffn_up.weight"] == GGMLQuantizationType[type.upper()]
        return
    assert fingerprint(back) == fingerprint(model)
    mlp = model.blocks[0].mlp
    up, bias, down = (tensors[f"blk.0.ffn_{name}"][1] for name in ("up.weight", "up.bias", "down.weight"))
    np.testing.assert_array_equal(up, 1024 * mlp.up.weight.detach().numpy())
    np.testing.assert_array_equal(bias, 1024 * mlp.up.bias.detach().numpy())
    np.testing.assert_array_equal(1024 * down, mlp.down.weight.detach().numpy())
    x = torch.linspace(-4, 4, 10_001)
    gelu = torch.nn.functional.gelu(RELU_FACTOR * x, approximate="tanh") / RELU_FACTOR
    assert float((gelu - x.relu()).abs().max()) < 0.17 / RELU_FACTOR


def test_llama_3s_stretching_is_a_tensor_and_comes_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_block_size=8192)
    model = model_of("llama", tokenizer, rope_scaling=scaling, rope_theta=500_000.0, head_dim=64)
    _, tensors = contents(exported(model, tmp_path))
    factors = tensors["rope_freqs.weight"][1]
    assert (factors.shape, factors[0], factors[-1]) == ((32,), 1.0, 8.0)
    back = load(tmp_path / "m.gguf")
    assert back.config == model.config
    assert torch.equal(back(IDS), model(IDS))


def test_the_reasoning_tokens_are_shown_and_the_answer_ends_a_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """llama.cpp prints nothing for a control token, and stops at the end of a turn."""
    model = model_of("gpt2", tokenizer)
    tokenizer.chat_template = REASONING_TEMPLATE
    fields, _ = contents(exported(model, tmp_path))
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == 320
    assert [tokens[i] for i in tokenizer.reasoning_ids] == list(TAGS)
    assert {kinds[i] for i in tokenizer.reasoning_ids} == {gguf.TokenType.USER_DEFINED}
    assert kinds[tokenizer.eos_id] == gguf.TokenType.CONTROL
    assert set(kinds[tokenizer.vocab_size :]) == {gguf.TokenType.UNUSED}
    assert kinds[0] == gguf.TokenType.NORMAL
    assert fields["tokenizer.ggml.eot_token_id"] == tokenizer.answer_end
    assert fields["tokenizer.ggml.eos_token_id"] == fields["tokenizer.ggml.bos_token_id"] == tokenizer.eos_id
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert fields["tokenizer.chat_template"] == REASONING_TEMPLATE


def cut_as(pre_tokenizer: pre_tokenizers.PreTokenizer, *, whole: bool = False, form: Any = None) -> Tokenizer:
    """Bytes and no merges but one, cut in some way."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ab"])}
    inner = Inner(models.BPE(vocabulary, [("a", "b")], ignore_merges=whole))
    inner.pre_tokenizer, inner.decoder = pre_tokenizer, ByteLevel()
    if form is not None:
        inner.normalizer = form
    return Tokenizer(inner)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    """As Llama 3 and Qwen write their cuts."""
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_alone])


GPT2_CUT = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(
    ("vocabulary", "name"),
    [
        (cut_as(GPT2_CUT), "gpt-2"),
        (cut_as(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2_CUT])), "smollm"),
        (cut_as(split(LLAMA_3_CUT), whole=True), "llama-bpe"),
        (cut_as(split(LLAMA_3_CUT.replace("{1,3}", "")), form=normalizers.NFC()), "qwen2"),
    ],
)
def test_the_cut_of_each_family_is_known_by_llama_cpps_name(vocabulary: Tokenizer, name: str, tmp_path: Path) -> None:
    fields, _ = contents(exported(model_of("gpt2", vocabulary), tmp_path))
    assert fields["tokenizer.ggml.pre"] == name
    read = load(tmp_path / "m.gguf").tokenizer
    assert read is not None
    for text in (*TEXTS, "ab  ABab'S 1234 \n\n x\u00b2\u0663<think>ab</answer>  "):
        assert read.encode(text) == vocabulary.encode(text)


@pytest.mark.parametrize(
    ("vocabulary", "says"),
    [
        (cut_as(split(LLAMA_3_CUT)), "cuts text in a way that is none of those"),
        (cut_as(pre_tokenizers.ByteLevel(add_prefix_space=True)), "cuts text in a way"),
        (cut_as(pre_tokenizers.Whitespace()), "cuts text in a way"),
        (cut_as(GPT2_CUT, form=normalizers.Lowercase()), "brings text into the form Lowercase"),
        (Tokenizer(Inner(models.WordPiece({"a": 0}))), "no byte-level BPE"),
    ],
)
def test_a_vocabulary_that_llama_cpp_would_cut_otherwise_is_refused(
    vocabulary: Tokenizer, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        exported(model_of("gpt2", vocabulary), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_a_sentence_and_leaves_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    good, bare = model_of("gpt2", tokenizer), model_of("gpt2", tokenizer)
    narrow = model_of("gpt2", tokenizer, n_embd=48)
    huge, broken = model_of("gpt2", tokenizer), model_of("gpt2", tokenizer)
    huge.blocks[1].attn.out.weight.data[0, 0] = 1e5
    broken.blocks[1].norm1.bias.data[3] = float("nan")
    bare.tokenizer = None
    for model, settings, says in (
        (good, {"type": "q4"}, "type"),
        (narrow, {"type": "q8_0"}, "blocks of 32 numbers, and token_embd.weight has rows of 48; use f16"),
        (huge, {"type": "f16"}, "blk.1.attn_output.weight holds 100000, which f16 cannot; use bf16 or f32"),
        (broken, {}, "blk.1.attn_norm.bias holds nan, which f32 cannot; the weights are damaged"),
        (bare, {}, "carries no tokenizer"),
        (model_of("gpt2", tokenizer, norm="rmsnorm"), {}, "has no norm = 'rmsnorm'"),
    ):
        with pytest.raises(UserError, match=says):
            exported(model, tmp_path, **settings)
        assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"m\.bin must end in \.gguf"):
        ne.export_gguf(good, tmp_path / "m.bin")
    for there in ("m.gguf", "m.Modelfile"):
        (tmp_path / there).write_text("mine")
        with pytest.raises(UserError, match=f"{there} is there already"):
            exported(good, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [there]
        (tmp_path / there).unlink()


def test_the_file_lists_what_was_done_and_what_was_edited(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = model_of("gpt2", tokenizer)
    model.lineage = (LineageEntry("note", "made by hand"), LineageEntry("note", "looked at"))
    fields, _ = contents(exported(model, tmp_path))
    assert fields["general.description"] == "made by hand; looked at"
    assert [entry["sentence"] for entry in json.loads(fields["nanogpt_edit.lineage"])] == ["made by hand", "looked at"]
    assert fields["nanogpt_edit.fingerprint"] == fingerprint(model)
    assert "nanogpt_edit.patches" not in fields
