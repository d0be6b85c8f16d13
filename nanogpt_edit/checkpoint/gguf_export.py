"""A model as one GGUF file, which llama.cpp, Ollama and LM Studio run; `ne.load` reads it back to the same logits.

Names, sizes and the order of rows are `gguf_names.py`, the vocabulary is `gguf_vocabulary.py`. Vectors and learned
positions stay float32 in a file of any type, as llama.cpp expects. The file is written tensor by tensor, so that no
second copy of the model is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, LlamaFileType
from gguf.gguf_writer import GGUFWriter
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor

from nanogpt_edit.checkpoint import gguf_names
from nanogpt_edit.checkpoint.config_json import config_to_json
from nanogpt_edit.checkpoint.gguf_types import FileType
from nanogpt_edit.checkpoint.gguf_vocabulary import vocabulary_metadata
from nanogpt_edit.checkpoint.lineage import lineage_json
from nanogpt_edit.checkpoint.weights import all_parameters, fingerprint
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import atomic_file, check_writable
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of

KINDS: Mapping[FileType, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
LARGEST: Mapping[GGMLQuantizationType, float] = {
    GGMLQuantizationType.F32: 3.4e38,
    GGMLQuantizationType.F16: 65_504.0,
    GGMLQuantizationType.BF16: 3.38e38,
    GGMLQuantizationType.Q8_0: 127 * 65_504.0,  # a block's scale is a float16
}
"""What a number of each type can be, in size."""
SUFFIX, MODELFILE = ".gguf", ".Modelfile"
QUANTIZATION_VERSION = 2  # of ggml's formats, Q8_0 among them


def write_gguf(model: GPT, file: Path, *, type: FileType, notes: Mapping[str, str]) -> None:
    """Write `model` to `file`, complete or not at all; `notes` are further entries of the metadata.

    Raises UserError for a file that is there, a model without a vocabulary or with one that llama.cpp cuts otherwise,
    sizes that the architecture or the type cannot express, and weights that the type cannot hold.
    """
    refuse_existing(file)
    config_to_json(model.config)  # a mix of features that no architecture has
    metadata = {
        "general.name": file.stem,
        "general.description": "; ".join(map(str, model.lineage)) or "nothing recorded",
        "general.file_type": int(KINDS[type][1]),
        "general.quantization_version": QUANTIZATION_VERSION,
        **gguf_names.metadata_of(model.config),
        **vocabulary_metadata(tokenizer_of(model), rows=model.config.vocab_size),
        "nanogpt_edit.lineage": json.dumps(lineage_json(model.lineage), ensure_ascii=False),
        "nanogpt_edit.fingerprint": fingerprint(model),
        **notes,
    }
    write_file(file, model.config.model_type, metadata, partial(_tensors, model), partial(_kind, type, model.config))


def write_file(
    file: Path,
    architecture: str,
    metadata: Mapping[str, object],
    tensors: Callable[[str], Iterator[tuple[str, Tensor]]],
    kind_of: Callable[[str], GGMLQuantizationType],
) -> None:
    """Write a GGUF file, complete or not at all.

    `tensors` gives names and tensors on a device, in the same order every time: first on "meta" for the shapes, which
    come before the numbers, and then on the CPU. `kind_of` says as what a tensor is stored.
    """
    writer = GGUFWriter(None, architecture)
    for key, value in metadata.items():
        writer.add_key_value(key, value, _value_type(value))
    for name, tensor in tensors("meta"):
        _describe(writer, name, tuple(tensor.shape), kind_of(name))
    with atomic_file(file) as temporary, closing(writer):
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors("cpu"):
            writer.write_tensor_data(_numbers(name, tensor, kind_of(name)))


def refuse_existing(file: Path) -> None:
    """Raise UserError where nothing can be written, or something would be overwritten."""
    if file.suffix != SUFFIX:
        raise UserError(f"{file} must end in {SUFFIX}, by which the programs that read it know it.")
    for path in (file, file.with_suffix(MODELFILE)):
        if path.is_file():
            raise UserError(f"{path} is there already; delete it, or give another name.")
        check_writable(path)


def _value_type(value: object) -> GGUFValueType:
    """llama.cpp reads whole numbers as unsigned, all others as `gguf` guesses them."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return GGUFValueType.UINT32 if whole else GGUFValueType.get_type(value)


def _tensors(model: GPT, device: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the file, each under its name, in the order in which they are written."""
    if model.config.rope_scaling is not None:
        yield gguf_names.STRETCHING, gguf_names.stretching(model.config)
    for name, weight in all_parameters(model):
        yield from gguf_names.stored_as(name, model.config).parts(weight.detach().to(device))


def _kind(type: FileType, config: GPTConfig, name: str) -> GGMLQuantizationType:
    return KINDS[type][0] if gguf_names.may_be_rounded(name, config) else GGMLQuantizationType.F32


def _describe(writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
    block = GGML_QUANT_SIZES[kind][0]
    if shape[-1] % block:
        raise UserError(
            f"{kind.name.lower()} stores rows in blocks of {block} numbers, and {name} has rows of {shape[-1]}; use "
            "f16, bf16 or f32."
        )
    floats = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(kind)
    stored_shape = shape if floats else quant_shape_to_byte_shape(shape, kind)
    number = np.dtype(floats or np.uint8)
    writer.add_tensor_info(name, stored_shape, number, number.itemsize * math.prod(stored_shape), raw_dtype=kind)


def _numbers(name: str, tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The tensor as the file holds it."""
    largest = float(tensor.abs().max())
    if not largest <= LARGEST[kind]:
        raise UserError(
            f"{name} holds {largest:g}, which {kind.name.lower()} cannot; "
            + ("use bf16 or f32." if largest <= LARGEST[GGMLQuantizationType.F32] else "the weights are damaged.")
        )
    return quantize(tensor.to(torch.float32).contiguous().numpy(), kind)
