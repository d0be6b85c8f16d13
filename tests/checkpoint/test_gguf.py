"""GGUF files: what llama.cpp's converter writes gives transformers' logits, of whatever type; what is wrong is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf_files import FAMILIES, as_quantised, described, random_model, tensors_of, write_gguf, write_tensors

from nanogpt_edit.checkpoint import checkpoint, gguf_file
from nanogpt_edit.checkpoint.gguf_file import GGUFFile
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.positions import RopeScaling

IDS = torch.randint(0, gguf_files.ROWS, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q6_K"])
def test_logits_are_those_of_the_dequantised_model(family: str, type: str, tmp_path: Path) -> None:
    """Quantised row by row, so that the order of rows makes no difference to it."""
    model = random_model(family)
    ours = checkpoint.load(write_gguf(tmp_path / "m.gguf", model, type))
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), as_quantised(model, type)(IDS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_is_tied_where_the_file_has_none(family: str, tmp_path: Path) -> None:
    for tied in (True, False):
        model = random_model(family, width=32, tie_word_embeddings=tied)
        ours = checkpoint.load(write_gguf(tmp_path / f"{tied}.gguf", model))
        assert ours.config.tie_embeddings == tied
        with torch.no_grad():
            torch.testing.assert_close(ours(IDS), model(IDS).logits, rtol=0, atol=2e-5)


def test_llama_has_biases_where_their_tensors_are(tmp_path: Path) -> None:
    model = random_model("llama", width=32, attention_bias=True, mlp_bias=True)
    ours = checkpoint.load(write_gguf(tmp_path / "m.gguf", model))
    assert ours.config.bias and ours.config.qkv_bias
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), model(IDS).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("numbers", [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (3.0, 1.0, 7.0, 300)])
def test_rope_freqs_are_llama_3s_stretching(numbers: tuple[float, float, float, int], tmp_path: Path) -> None:
    """The factors by llama.cpp's converter's rule, and a model of transformers that is stretched so."""
    factor, low, high, context = numbers
    model = random_model("llama", width=512, rope_parameters={
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": factor, "low_freq_factor": low,
        "high_freq_factor": high, "original_max_position_embeddings": context,
    })  # fmt: skip
    factors = []
    for pair in range(64):
        frequency = 10_000.0 ** (-2 * pair / 128)
        turns = context * frequency / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0), 1)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    tensors = {**dict(tensors_of(model)), "rope_freqs.weight": np.array(factors, dtype=np.float32)}
    write_tensors(tmp_path / "m.gguf", "llama", described(model), tensors)
    ours = checkpoint.load(tmp_path / "m.gguf")
    assert ours.config.rope_scaling == RopeScaling(*numbers)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), model(IDS).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("type", [type.name for type in GGMLQuantizationType])
def test_every_type_is_read_as_the_gguf_package_dequantises_it(
    type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of fewer numbers than a row has; what the package has no rule for is refused by name."""
    monkeypatch.setattr(gguf_file, "CHUNK", 512)
    quantised = GGMLQuantizationType[type]
    block, size = GGML_QUANT_SIZES[quantised]
    stored = np.random.default_rng(0).integers(0, 60, (3, 3072 // block * size), dtype=np.uint8)  # no NaN, no infinity
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor_info("x", stored.shape, stored.dtype, stored.nbytes, raw_dtype=quantised)
    writer.tensors[-1]["x"].tensor = stored
    gguf_files.finish(writer)
    try:
        expected = gguf.quants.dequantize(stored, quantised)
    except NotImplementedError:
        with pytest.raises(UserError, match=f"x is of type {type}, which cannot be dequantised"):
            GGUFFile(tmp_path / "m.gguf")
        return
    np.testing.assert_array_equal(GGUFFile(tmp_path / "m.gguf").read("x").numpy(), expected)


def test_a_lineage_says_what_was_dequantised(tmp_path: Path) -> None:
    licence = {"general.license": "apache-2.0"}
    file = write_gguf(tmp_path / "m.gguf", random_model("qwen2", width=32), "Q8_0", **licence)
    checkpoint.save(checkpoint.load(file), tmp_path / "saved")
    (entry,) = checkpoint.load(tmp_path / "saved").lineage
    assert entry.kind == "taken"
    assert entry.sentence == "dequantised from the GGUF file m.gguf to float32 (16 Q8_0, 11 F32)"
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n") and "as it came with it: apache-2.0." in card


# What is wrong with a file

NORM = b"output_norm.weight\1\0\0\0\x20\0\0\0\0\0\0\0"  # one dimension of 32; its type follows
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "not a GGUF file"),
    "another format": (lambda data: b"PK\3\4" + data[4:], r"not a GGUF file \(it begins with b'PK"),
    "version 2": (lambda data: data[:4] + b"\2\0\0\0" + data[8:], "version 2 of GGUF is not read, only 3"),
    "big-endian": (lambda data: data[:4] + b"\0\0\0\3" + data[8:], "in big-endian order"),
    "tensors without end": (lambda data: data[:8] + b"\xff" * 7 + b"\x7f" + data[16:], "9,223,372,036,854,775,807 thi"),
    "entries without end": (lambda data: data[:16] + b"\xff" * 8 + data[24:], "18,446,744,073,709,551,615 things"),
    "a name without end": (
        lambda data: data[:24] + b"\xff" * 8 + data[32:],
        "18,446,744,073,709,551,615 bytes are said",
    ),
    "an array without end": (
        lambda data: data.replace(b"tokens\t\0\0\0\x08\0\0\0\3\0", b"tokens\t\0\0\0\x08\0\0\0\3\xff"),
        "65,283 things",
    ),
    "the last tensor cut off": (lambda data: data[:-40], "cut off: .* ends at byte .* Fetch it again"),
    "a name twice": (
        lambda data: data.replace(b"blk.1.attn_k.w", b"blk.1.attn_v.w"),
        "attn_v.weight is in the file twi",
    ),
    "a kind of entry": (
        lambda data: data.replace(b"context_length\5", b"context_length\x2a"),
        "is of kind 42 in the meta",
    ),
    "no text": (
        lambda data: data.replace(b"general.arch", b"general.\xff\xff\xff\xff"),
        "the name of an entry is not UTF-8",
    ),
    "a type": (
        lambda data: data.replace(NORM + b"\0", NORM + b"\x63"),
        "output_norm.weight is of type 99, which cannot be dequantised",
    ),
    "a tensor of another name": (
        lambda data: data.replace(b"output_norm.weight", b"output_nord.weight"),
        "lack output_norm.weight",
    ),
}
LIES: dict[str, tuple[dict[str, object], str]] = {
    "an architecture": ({"general__architecture": "mamba"}, 'architecture "mamba" is not supported'),
    "an entry that lacks": ({"llama__block_count": None}, 'the metadata lack "llama.block_count"'),
    "more blocks": ({"llama__block_count": 3}, "the weights lack blk.2"),
    "blocks without number": ({"llama__block_count": 2**31 - 1}, "n_layer 2,147,483,647, the files only 21 tensors"),
    "fewer blocks": ({"llama__block_count": 1}, r"have no place .* \(first: blk.1"),
    "another width": ({"llama__embedding_length": 64}, r"shape \(96, 32\), but the config calls for \(96, 64\)"),
    "another MLP": ({"llama__feed_forward_length": 48}, r"shape \(32, 32\), but the config calls for \(48, 32\)"),
    "heads that do not divide": ({"llama__attention__head_count": 5}, "n_head 5 is not a multiple of n_kv_head 2"),
    "heads of another kind": ({"llama__attention__head_count": "4"}, r"must be a whole number from 1 to .* found '4'"),
    "heads that differ": (
        {"llama__attention__head_count_kv": [2, 1]},
        r"must be the same in all blocks; found \[2, 1\]",
    ),
    "another vocabulary": ({"llama__vocab_size": 97}, '"llama.vocab_size" must be 96; found 97'),
    "a number that is none": ({"llama__rope__freq_base": float("nan")}, "must be a finite number; found nan"),
    "half a rotation": ({"llama__rope__dimension_count": 4}, '"llama.rope.dimension_count" must be 8; found 4'),
    "a stretching": ({"llama__rope__scaling__type": "yarn"}, "must be none or linear; found 'yarn'"),
    "experts": ({"llama__expert_count": 8}, '"llama.expert_count" must be 0; found 8'),
    "an alignment": ({"general__alignment": 24}, '"general.alignment" must be a power of two, found 24'),
}
VOCABULARY: dict[str, object] = {
    "tokenizer__ggml__model": "gpt2", "tokenizer__ggml__pre": "smollm", "tokenizer__ggml__tokens": ["a", "b", "ab"],
    "tokenizer__ggml__merges": ["a b"],
}  # fmt: skip


def refused(file: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        checkpoint.load(file)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGE[damage]
    file = write_gguf(tmp_path / "m.gguf", random_model("llama", width=32), **VOCABULARY)
    data = file.read_bytes()
    file.write_bytes(change(data))
    assert file.read_bytes() != data
    refused(file, message)


@pytest.mark.parametrize("lie", LIES)
def test_metadata_that_lie_are_refused(lie: str, tmp_path: Path) -> None:
    metadata, message = LIES[lie]
    refused(write_gguf(tmp_path / "m.gguf", random_model("llama", width=32), **metadata), message)


def test_a_file_may_be_cut_off_anywhere(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", random_model("llama", width=32), **VOCABULARY)
    data = file.read_bytes()
    for length in [*range(0, 2000, 23), *range(2000, len(data), 997), len(data) - 1]:
        file.write_bytes(data[:length])
        refused(file, "cut off|not a GGUF file")


def test_a_tensor_of_another_kind_of_model_is_named(tmp_path: Path) -> None:
    model = random_model("qwen2", width=32)
    for name, shape in {"blk.0.attn_sinks.weight": (4,), "rope_freqs.weight": (4,)}.items():
        tensors = {**dict(tensors_of(model)), name: np.ones(shape, dtype=np.float32)}
        write_tensors(tmp_path / "m.gguf", "qwen2", described(model), tensors)
        refused(tmp_path / "m.gguf", f"first: {name}")


@pytest.mark.parametrize(("factors", "message"), [
    (np.linspace(1, 8, 4), "in another way than Llama 3's"), (np.ones(5), r"rope_freqs.weight has shape \(5,\)"),
])  # fmt: skip
def test_another_stretching_is_refused(factors: np.ndarray, message: str, tmp_path: Path) -> None:
    model = random_model("llama", width=32)
    tensors = {**dict(tensors_of(model)), "rope_freqs.weight": factors.astype(np.float32)}
    write_tensors(tmp_path / "m.gguf", "llama", described(model), tensors)
    refused(tmp_path / "m.gguf", message)


def test_a_folder_names_the_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(UserError, match=r"Its GGUF file is .*m\.gguf; name that"):
        checkpoint.load(tmp_path)
    with pytest.raises(UserError, match="no such model directory or file"):
        checkpoint.load(str(tmp_path / "n.gguf"))
