"""A patch as one safetensors file: tensors per layer, everything else as JSON in the header, and a hash over both.

A file that is cut short, changed by a bit, or not a patch at all is refused whole. An edited model's directory carries
its patches, numbered in the order in which they were applied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from nanogpt_edit.edit.config import EditConfig
from nanogpt_edit.edit.fact_files import fact_from_record, fact_to_record
from nanogpt_edit.edit.patch import EditedFact, EditPatch, LayerUpdate, Undo
from nanogpt_edit.errors import UserError
from nanogpt_edit.files import atomic_file
from nanogpt_edit.model.checkpoint import save
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tensors import read_whole

FORMAT = "nanogpt_edit patch 1"
CARRIED = "patches"  # folder of a model directory


def save_patch(patch: EditPatch, path: Path) -> None:
    """Write `patch`, atomically."""
    tensors: dict[str, Tensor] = {"values": patch.values}
    layers: dict[str, dict[str, str]] = {}
    for layer, update in patch.layers.items():
        tensors |= {f"{layer}.left": update.left, f"{layer}.right": update.right, f"{layer}.keys": update.keys}
        layers[str(layer)] = {
            "expected_sha256": update.expected_sha256,
            "covariance_sha256": update.covariance_sha256,
        }
        if update.undo is not None:
            tensors |= {f"{layer}.undo_index": update.undo.index, f"{layer}.undo_original": update.undo.original}
            layers[str(layer)]["edited_sha256"] = update.undo.edited_sha256
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    record = json.dumps(
        {
            "layers": layers,
            "edited": [
                {**fact_to_record(e.fact), "lookup": e.lookup, "probability": e.probability, "shift": e.shift}
                | {"steps": e.steps}
                for e in patch.edited
            ],
            "config": asdict(patch.config),
            "batches": list(patch.batches),
            "seconds": patch.seconds,
            "created": patch.created,
            "versions": dict(patch.versions),
            "scores": [dict(score) for score in patch.scores],
        },
        ensure_ascii=False,
    )
    metadata = {"format": FORMAT, "patch": record, "sha256": _digest(tensors, record)}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_patch(path: str | Path) -> EditPatch:
    """Read a patch back. Raises UserError for a missing, damaged, truncated or foreign file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        tensors, metadata = read_whole(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}). Copy or make it again.") from None
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "none")
        what = (
            "a patch of another version"
            if found.startswith("nanogpt_edit")
            else "not a patch but another safetensors file"
        )
        raise UserError(f'{path}: {what} (format "{found}"); name one that an edit of this version wrote.')
    if metadata.get("sha256") != _digest(tensors, metadata["patch"]):
        raise UserError(f"{path}: damaged, its contents do not match their hash. Copy or make it again.")
    return _patch(json.loads(metadata["patch"]), tensors, path)


def save_edited(model: GPT, directory: Path, patches: Mapping[str, EditPatch]) -> None:
    """Write an edited model with the patches that made it, by name, oldest first (see `carried_patches`)."""
    save(
        model,
        directory,
        attachments={
            f"{CARRIED}/{number:03}-{name}.safetensors": partial(save_patch, patch)
            for number, (name, patch) in enumerate(patches.items(), start=1)
        },
    )


def carried_patches(directory: Path | str) -> dict[str, EditPatch]:
    """The patches in a model's directory, by name, oldest first; none for a model that was not edited."""
    found = sorted((Path(directory) / CARRIED).glob("*.safetensors"))
    return {path.stem.partition("-")[2]: load_patch(path) for path in found}


def _patch(record: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> EditPatch:
    layers: dict[int, LayerUpdate] = {}
    for name, hashes in record["layers"].items():
        undo = None
        if "edited_sha256" in hashes:
            undo = Undo(hashes["edited_sha256"], tensors[f"{name}.undo_index"], tensors[f"{name}.undo_original"])
        layers[int(name)] = LayerUpdate(
            left=tensors[f"{name}.left"],
            right=tensors[f"{name}.right"],
            keys=tensors[f"{name}.keys"],
            expected_sha256=hashes["expected_sha256"],
            covariance_sha256=hashes["covariance_sha256"],
            undo=undo,
        )
    return EditPatch(
        layers=layers,
        values=tensors["values"],
        edited=tuple(_edited(item, f"{path}, fact {i}") for i, item in enumerate(record["edited"])),
        config=_config(record["config"], path),
        batches=tuple(record["batches"]),
        seconds=record["seconds"],
        created=record["created"],
        versions=record["versions"],
        scores=tuple(record["scores"]),
    )


def _edited(item: dict[str, Any], where: str) -> EditedFact:
    how = {name: item.pop(name) for name in ("lookup", "probability", "shift", "steps")}
    return EditedFact(fact=fact_from_record(item, where=where), **how)


def _config(record: Mapping[str, Any], path: Path) -> EditConfig:
    unknown = sorted(set(record) - {field.name for field in fields(EditConfig)})
    if unknown:
        raise UserError(f"{path}: written by a newer version (setting {', '.join(unknown)}); update nanogpt_edit.")
    return EditConfig(**{**record, "layers": tuple(record["layers"])})


def _digest(tensors: Mapping[str, Tensor], record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
