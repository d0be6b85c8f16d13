"""GGUF files as llama.cpp's converter makes them, of random models of transformers: names by the `gguf` package's own
table, metadata by its writer, llama's queries and keys in the order of its converter."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

FAMILIES = {
    "gpt2": MODEL_ARCH.GPT2,
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
}
F32, Q6_K = GGMLQuantizationType.F32, GGMLQuantizationType.Q6_K
CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
ROWS, CONTEXT = 96, 64


def random_model(family: str, *, width: int = 256, **changes: object) -> PreTrainedModel:
    """One or two layers, of a width that the blocks of every type divide."""
    torch.manual_seed(3)
    sizes: dict[str, object] = {
        "vocab_size": ROWS, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": width
    }  # fmt: skip
    config: PretrainedConfig
    if family == "gpt2":
        config = GPT2Config(vocab_size=ROWS, n_positions=CONTEXT, n_embd=width, n_layer=2, n_head=4, **changes)
    else:
        sizes |= {"num_key_value_heads": 2, "intermediate_size": width, "max_position_embeddings": CONTEXT}
        sizes |= {"head_dim": width // 2} if family == "qwen3" else {}
        config = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[family](**{**sizes, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias") or weight.dim() == 1:
            weight.data += 0.1 * torch.randn_like(weight)  # else biases are 0 and norms are 1
        elif "embed" not in name and "wte" not in name:
            weight.data *= 3
    return model


def write_gguf(path: Path, model: PreTrainedModel, type: str = "F32", **metadata: object) -> Path:
    """`metadata` are further entries, by their names with "__" for ".", or of `None` to leave one out."""
    write_tensors(path, family_of(model), described(model), dict(tensors_of(model)), type, **metadata)
    return path


def family_of(model: PreTrainedModel) -> str:
    return str(model.config.model_type)


def described(model: PreTrainedModel) -> dict[str, int | float]:
    """The metadata of llama.cpp's converter."""
    config, family = model.config, family_of(model)
    entries: dict[str, int | float] = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "vocab_size": config.vocab_size,
    }
    if family == "gpt2":
        entries |= {"feed_forward_length": 4 * config.n_embd, "attention.layer_norm_epsilon": config.layer_norm_epsilon}
    else:
        entries |= {"feed_forward_length": config.intermediate_size, "rope.freq_base": rope_theta(config)}
        entries |= {"attention.head_count_kv": config.num_key_value_heads}
        entries |= {"attention.layer_norm_rms_epsilon": config.rms_norm_eps}
    if family == "qwen3":
        entries |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    return {f"{family}.{key}": value for key, value in entries.items()}


def rope_theta(config: PretrainedConfig) -> float:
    return float(config.rope_parameters["rope_theta"])


def tensors_of(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """Names and numbers as llama.cpp's converter writes them."""
    config, family = model.config, family_of(model)
    table = gguf.get_tensor_name_map(FAMILIES[family], config.num_hidden_layers)
    state: Mapping[str, Tensor] = model.state_dict()
    for name, weight in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if family == "gpt2" and name.endswith(CONV1D):
            weight = weight.T
        if family == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
            weight = weight.swapaxes(1, 2).reshape(-1, *weight.shape[3:])
        stored = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        yield stored, weight.contiguous().numpy()


def write_tensors(
    path: Path,
    family: str,
    entries: Mapping[str, object],
    tensors: Mapping[str, np.ndarray],
    type: str = "F32",
    **metadata: object,
) -> None:
    """A file of any metadata and tensors; vectors stay F32, as llama.cpp's converter leaves them."""
    entries = {**entries, **{name.replace("__", "."): value for name, value in metadata.items()}}
    writer = gguf.GGUFWriter(path, str(entries.pop("general.architecture", family)))
    for key, value in entries.items():
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind, gguf.GGUFValueType.get_type(value[0]) if kind == 9 else None)
    for name, tensor in tensors.items():
        quantised = GGMLQuantizationType[type] if tensor.ndim > 1 and "position" not in name else F32
        writer.add_tensor(name, quantise(tensor, quantised), raw_dtype=quantised)
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_quantised(model: PreTrainedModel, type: str) -> PreTrainedModel:
    """The same model with the weights that a file of `type` holds, dequantised by the `gguf` package."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "wpe" not in name:
            turned = family_of(model) == "gpt2" and name.endswith(CONV1D)
            stored = weight.data.T.contiguous() if turned else weight.data
            quantised = quantise(stored.numpy(), GGMLQuantizationType[type])
            dequantised = torch.from_numpy(gguf.quants.dequantize(quantised, GGMLQuantizationType[type]))
            weight.data = dequantised.T.contiguous() if turned else dequantised
    return model


def quantise(weight: np.ndarray, type: GGMLQuantizationType) -> np.ndarray:
    """(..., bytes), each row for itself, by the `gguf` package. Q6_K, which it can only dequantise, is made of random
    bits that hang on the row alone, and scales with which weights come out as large as a model's."""
    if type != Q6_K:
        return gguf.quants.quantize(weight, type)
    block, size = GGML_QUANT_SIZES[type]
    shape = (weight.shape[-1] // block, size)
    rows = [np.random.default_rng(zlib.crc32(row.tobytes())).integers(0, 256, shape, dtype=np.uint8) for row in weight]
    blocks = np.stack(rows)
    blocks[..., -2:] = np.array([2e-5], dtype=np.float16).view(np.uint8)  # the scale of the scales
    return blocks.reshape(len(weight), -1)
