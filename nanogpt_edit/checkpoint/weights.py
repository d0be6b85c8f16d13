"""A model's parameters and the tensors of its files: which is which, in and out, and the model's fingerprint.

Reading fills a model that has no weights yet, one tensor at a time. Everything is checked before the first number is
read: each parameter has its tensors, in the right shape, and no tensor is left over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from nanogpt_edit.checkpoint import weight_names
from nanogpt_edit.checkpoint.tensors import Entry, Tensors, add_tensor
from nanogpt_edit.common import files
from nanogpt_edit.common import terminal as progress
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT

SHARD_BYTES = 5_000_000_000

Plan = Mapping[str, weight_names.Stored]
"""For each of our parameters, the tensors of the files that make it up."""


def make_plan(
    model: GPT, tensors: Tensors, config: GPTConfig, path: Path, layout: weight_names.Layout = weight_names.stored_as
) -> Plan:
    """Find every parameter of `model` in `tensors`, as `layout` names them; check names, shapes and number formats.

    `config` is what the files hold; `model` may have more vocabulary rows.
    Raises UserError, naming `path` or the file, for a tensor that is missing, misshapen, quantised, or left over.
    """
    bare = _bare_names(tensors, path)
    plan: dict[str, weight_names.Stored] = {}
    for name, parameter in model.named_parameters():
        stored = layout(name, config)
        rows = config.vocab_size if name in ("embed.weight", "head.weight") else parameter.shape[0]
        found = tuple(bare.pop(weight_names.without_prefix(wanted), wanted) for wanted in stored.names)
        for part, part_rows in zip(found, stored.rows or (rows,), strict=True):
            shape = (part_rows, *parameter.shape[1:])
            _check(tensors.entries.get(part), part, shape[::-1] if stored.transposed else shape, path)
        plan[name] = replace(stored, names=found, rows=stored.rows or (rows,))
    _refuse_surplus(sorted(name for short, name in bare.items() if not _may_be_left(short, config)), tensors, path)
    return plan


def with_own_head(config: GPTConfig, tensors: Tensors, path: Path) -> GPTConfig:
    """`config`, untied where the files hold a head that differs from the embedding the config ties it to.

    transformers reads such files in the same way.
    """
    names = _bare_names(tensors, path)
    embed = names.get(weight_names.without_prefix(weight_names.stored_as("embed.weight", config).names[0]))
    head = names.get("lm_head.weight")
    if not config.tie_embeddings or head is None or embed is None:
        return config
    if _same(tensors, head, embed):
        return config
    progress.say(f"{path}: the config ties the head to the embedding, but {head} differs from it: kept apart.")
    return replace(config, tie_embeddings=False)


def check_depth(config: GPTConfig, tensors: Tensors, path: Path) -> None:
    """Raise UserError for more blocks than the files have tensors, before any is made."""
    if config.n_layer > len(tensors.entries):
        raise UserError(
            f"{path}: the config has n_layer {config.n_layer:,}, the files only {len(tensors.entries)} tensors. "
            "Config and weights belong to different models."
        )


def stored_dtype(plan: Plan, tensors: Tensors) -> torch.dtype | None:
    """The number format of the embedding, which the whole model takes."""
    return tensors.entries[plan["embed.weight"].names[0]].dtype


@torch.no_grad()
def fill(model: GPT, tensors: Tensors, plan: Plan) -> None:
    """Copy the files' numbers into the model; vocabulary rows the files lack stay as they are."""
    for name, parameter in model.named_parameters():
        end = 0
        for index, (part, rows) in enumerate(zip(plan[name].names, plan[name].rows, strict=True)):
            start, end = end, end + rows
            parameter[start:end].copy_(plan[name].ours(index, tensors.read(part)))


def write(model: GPT, directory: Path) -> None:
    """Write model.safetensors, or shards of at most `SHARD_BYTES` with their index; one shard is copied at a time."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    shards = list(_shards(model))
    if len(shards) == 1:
        _save(dict(_tensors(model, shards[0])), directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        tensors = dict(_tensors(model, names))
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _save(tensors, directory / file)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files.write_json(directory / "model.safetensors.index.json", index)


def fingerprint(model: GPT) -> str:
    """SHA-256 (hex) over the weights: names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(name.encode() + b"\0")
        add_tensor(digest, weight)
    return digest.hexdigest()


def _same(tensors: Tensors, first: str, second: str) -> bool:
    one, other = tensors.entries[first], tensors.entries[second]
    alike = (one.shape, one.dtype) == (other.shape, other.dtype)
    return alike and torch.equal(tensors.read(first), tensors.read(second))


def _bare_names(tensors: Tensors, path: Path) -> dict[str, str]:
    """Names as the bare decoder has them -> names in the files. Raises UserError where two would be the same."""
    bare: dict[str, str] = {}
    for name in tensors.entries:
        other = bare.setdefault(weight_names.without_prefix(name), name)
        if other != name:
            raise UserError(f"{path}: {other} and {name} are the same weight; keep one of them in the file.")
    return bare


def _refuse_surplus(surplus: Sequence[str], tensors: Tensors, path: Path) -> None:
    for name in surplus:
        for part, (what, remedy) in weight_names.FOREIGN.items():
            if part in name.split("."):
                raise UserError(f"{path}: {name} is part of {what}, which is not in a language model. {remedy}")
    if surplus:
        raise UserError(
            f"{path}: {len(surplus)} tensors have no place in the model that the config describes (first: "
            f"{surplus[0]}, shape {tensors.entries[surplus[0]].shape}). Config and weights belong to different models."
        )


def _check(entry: Entry | None, name: str, shape: tuple[int, ...], path: Path) -> None:
    if entry is None:
        raise UserError(f"{path}: the weights lack {name}, shape {shape}, which the config calls for.")
    if entry.shape != shape:
        raise UserError(f"{entry.file}: {name} has shape {entry.shape}, but the config calls for {shape}.")
    if entry.dtype is None or not entry.dtype.is_floating_point:
        raise UserError(f"{entry.file}: {name} is quantised; only float32, bfloat16 and float16 weights are read.")


def _may_be_left(name: str, config: GPTConfig) -> bool:
    """Buffers of older files, a tied head written out, the zero biases of a GPT-2 without biases."""
    tied_head = name == "lm_head.weight" and config.tie_embeddings
    return tied_head or name.endswith(weight_names.NOT_WEIGHTS) or (name.endswith(".bias") and not config.bias)


def _shards(model: GPT) -> Iterator[frozenset[str]]:
    """Our parameter names in groups of at most `SHARD_BYTES` (a larger tensor stands alone)."""
    names: list[str] = []
    size = 0
    for name, parameter in all_parameters(model):
        if names and size + parameter.nbytes > SHARD_BYTES:
            yield frozenset(names)
            names, size = [], 0
        names.append(name)
        size += parameter.nbytes
    yield frozenset(names)


def _tensors(model: GPT, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The parameters `names` (ours), under their names and in their orientation in the file."""
    for name, parameter in all_parameters(model):
        if name in names:
            for part_name, part in weight_names.stored_as(name, model.config).parts(parameter.detach().to("cpu")):
                # Copied in any case: safetensors refuses tensors that share their memory.
                yield part_name, part.clone(memory_format=torch.contiguous_format)


def all_parameters(model: GPT) -> Iterator[tuple[str, Tensor]]:
    """The named parameters; a GPT-2 without biases gets zeros, which Hugging Face's GPT-2 cannot do without."""
    yield from model.named_parameters()
    if model.config.model_type == "gpt2" and not model.config.bias:
        with torch.device("meta"):
            biased = GPT(replace(model.config, bias=True, qkv_bias=True))
        present = dict(model.named_parameters())
        for name, parameter in biased.named_parameters():
            if name not in present:
                yield name, torch.zeros(parameter.shape, dtype=model.dtype)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        save_file(tensors, file, metadata={"format": "pt"})  # transformers asks for the format
    except SafetensorError as error:
        raise UserError(f"{file}: the weights could not be written ({error}).") from None
