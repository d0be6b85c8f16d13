"""A patch as a LoRA adapter (Hu et al. 2022), which other programs add to the untouched model, with a dial.

A patch's ΔW = left · right is what they call B · A. Nothing is solved or rounded anew: with the scale 1 the adapter is
the edit, with 0 it is not there. `peft` and vLLM read a directory of it, llama.cpp a GGUF file (`--lora`), for the file
that `export gguf` writes of the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor
from torch.nn.functional import pad

from nanogpt_edit.checkpoint import gguf_names, peft
from nanogpt_edit.checkpoint.gguf_export import write_file
from nanogpt_edit.checkpoint.peft import Factors
from nanogpt_edit.common import files
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.editing.patch import EditPatch, LayerUpdate
from nanogpt_edit.model.gpt import GPT


def write_peft(patch: EditPatch, model: GPT, directory: Path, *, base: str) -> None:
    """Write `patch` as a directory that `PeftModel.from_pretrained(base, directory)` reads.

    `model` is the one that the patch was made for, and `base` its directory or its name on the hub, which the adapter
    names. Raises UserError for another model, and where something is there already.
    """
    patch.check(model)
    refuse_existing(directory)
    factors, about = factors_of(patch), described(directory.name, patch)
    with files.atomic_directory(directory) as part:  # its alpha: they scale by alpha / r
        peft.write(part, factors, model.config, base=base, alpha=rank_of(factors), about=about)


def write_gguf_adapter(patch: EditPatch, model: GPT, file: Path) -> None:
    """Write `patch` as a file for llama.cpp's `--lora`, to go with the GGUF file of `model`, of whatever type.

    `model` is the one that the patch was made for. Raises UserError for another, and where something is there already.
    """
    patch.check(model)
    refuse_existing(file)
    factors = factors_of(patch)
    metadata = {
        "general.type": "adapter",
        "general.name": file.stem,
        "general.description": patch.describe(),
        "adapter.type": "lora",
        "adapter.lora.alpha": float(rank_of(factors)),  # it scales by alpha / rank
        "nanogpt_edit.patches": json.dumps([described(file.stem, patch)], ensure_ascii=False),
    }

    def tensors(device: str) -> Iterator[tuple[str, Tensor]]:
        for name, factor in factors.items():
            for part, b in gguf_names.stored_as(name, model.config).parts(factor.b.to(device)):
                yield f"{part}.lora_a", factor.a.to(device)
                yield f"{part}.lora_b", b

    write_file(file, model.config.model_type, metadata, tensors, lambda _: GGMLQuantizationType.F32)


def factors_of(patch: EditPatch) -> dict[str, Factors]:
    """The factors of each weight's ΔW, all of one rank: zeros fill up those of a smaller one."""
    factors = {name: _factors(update) for name, update in patch.matrices.items()}
    rank = rank_of(factors)
    return {
        name: Factors(
            a=pad(each.a, (0, 0, 0, rank - len(each.a))).contiguous(),
            b=pad(each.b, (0, rank - len(each.a))).contiguous(),
        )
        for name, each in factors.items()
    }


def _factors(update: LayerUpdate) -> Factors:
    """More columns than a side of the matrix is long say no more than the matrix itself."""
    (width, columns), long = update.left.shape, update.right.shape[1]
    if columns <= min(width, long):
        return Factors(a=update.right, b=update.left)
    delta = update.delta().float()
    return Factors(a=delta, b=torch.eye(width)) if width <= long else Factors(a=torch.eye(long), b=delta)


def rank_of(factors: Mapping[str, Factors]) -> int:
    return max(len(each.a) for each in factors.values())


def described(name: str, patch: EditPatch) -> dict[str, object]:
    """What a reader of another program's file learns of an edit: which facts, how, and of which weights."""
    return {
        "name": name,
        "method": patch.config.method,
        "layers": list(patch.layers),
        "created": patch.created,
        "base_fingerprint": patch.base_fingerprint,
        "facts": [
            {
                "prompt": fact.prompt,
                "subject": fact.subject,
                "target_true": fact.target_true,
                "target_new": fact.target_new,
            }
            for fact in patch.facts
        ],
    }


def refuse_existing(path: Path) -> None:
    """Raise UserError where something would be overwritten."""
    if path.exists():
        raise UserError(f"{path} is there already; delete it, or give another name.")
