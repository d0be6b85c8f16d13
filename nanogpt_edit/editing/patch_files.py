"""A patch as one safetensors file: tensors per layer, everything else as JSON in the header, and a hash over both.

A file that is cut short, changed by a bit, or not a patch at all is refused whole, and so is one whose hash is right
and whose contents no edit could have written: patches come from other people. An edited model's directory carries its
patches, numbered in the order in which they were applied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_edit.checkpoint.checked import format_of, read_checked, write_checked
from nanogpt_edit.checkpoint.checkpoint import save
from nanogpt_edit.checkpoint.tensors import DTYPES
from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError, visible
from nanogpt_edit.common.files import check_file, parse_json
from nanogpt_edit.common.records import Place, to_dataclass
from nanogpt_edit.data.fact_files import fact_from_record, fact_to_record
from nanogpt_edit.data.facts import Lookup
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.patch import EditedFact, EditPatch, LayerUpdate, Undo
from nanogpt_edit.editing.records import Tried
from nanogpt_edit.model.gpt import GPT

FORMAT = "nanogpt_edit patch 1"
REMEDY = " Copy or make it again."
CARRIED = "patches"  # folder of a model directory
BESIDE = re.compile(r"blocks\.(0|[1-9]\d{0,5})\.(attn\.(qkv|out)|mlp\.(gate|up))\.weight", re.ASCII)


def save_patch(patch: EditPatch, path: Path) -> None:
    """Write `patch`, atomically."""
    tensors: dict[str, Tensor] = {"values": patch.values}
    updates = {**{str(layer): update for layer, update in patch.layers.items()}, **patch.beside}
    said: dict[str, dict[str, str]] = {}
    for name, update in updates.items():
        tensors |= {f"{name}.left": update.left, f"{name}.right": update.right}
        if update.keys.numel():
            tensors[f"{name}.keys"] = update.keys
        said[name] = {"expected_sha256": update.expected_sha256, "covariance_sha256": update.covariance_sha256}
        if update.undo is not None:
            tensors |= {f"{name}.undo_index": update.undo.index, f"{name}.undo_original": update.undo.original}
            said[name]["edited_sha256"] = update.undo.edited_sha256
    record = json.dumps(
        {
            "layers": {str(layer): said[str(layer)] for layer in patch.layers},
            "beside": {name: said[name] for name in patch.beside},
            "edited": [
                {**fact_to_record(e.fact), "lookup": e.lookup, "probability": e.probability, "shift": e.shift}
                | {"steps": e.steps, "columns": e.columns}
                for e in patch.edited
            ],
            "config": asdict(patch.config),
            "batches": list(patch.batches),
            "seconds": patch.seconds,
            "created": patch.created,
            "versions": dict(patch.versions),
            "tried": [asdict(each) for each in patch.tried],
            "scores": [dict(score) for score in patch.scores],
            "base_fingerprint": patch.base_fingerprint,
        },
        ensure_ascii=False,
    )
    write_checked(path, tensors, text=record, entry="patch", format=FORMAT)


@checked
def load_patch(path: str | Path) -> EditPatch:
    """Read a patch back. Raises UserError for a missing, damaged, truncated, foreign or forged file."""
    path = Path(path)
    check_file(path)
    found = format_of(path, remedy=REMEDY) or "none"
    if found != FORMAT:
        versions = found.startswith("nanogpt_edit")
        what = "a patch of another version" if versions else "not a patch but another safetensors file"
        raise UserError(
            f'{path}: {what} (format "{visible(found[:60])}"); name one that an edit of this version wrote.'
        )
    tensors, record = read_checked(path, entry="patch", remedy=REMEDY)
    try:
        return _patch(record, tensors)
    except UserError as error:
        raise UserError(f"{path}: no patch that an edit wrote: {error} Make it again.") from None


def save_edited(model: GPT, directory: Path, patches: Sequence[tuple[str, EditPatch]]) -> None:
    """Write a model with the patches that made it, each with a name, oldest first (see `carried_patches`)."""
    save(
        model,
        directory,
        attachments={
            f"{CARRIED}/{number:03}-{name}.safetensors": partial(save_patch, patch)
            for number, (name, patch) in enumerate(patches, start=1)
        },
    )


def carried_patches(directory: Path | str) -> list[tuple[str, EditPatch]]:
    """The patches in a model's directory with their names, oldest first; none for a model that was not edited."""
    found = (Path(directory) / CARRIED).glob("*.safetensors")
    numbered = sorted((path.stem.partition("-") for path in found), key=lambda parts: (len(parts[0]), parts))
    return [
        (name, load_patch(Path(directory) / CARRIED / f"{number}-{name}.safetensors")) for number, _, name in numbered
    ]


@dataclass(frozen=True)
class _Layer:
    """What the header says of one layer."""

    expected_sha256: str
    covariance_sha256: str = ""
    edited_sha256: str | None = None


@dataclass(frozen=True)
class _How:
    """What the header says of one fact, beside the fact itself."""

    lookup: Lookup
    probability: float
    shift: float
    steps: int
    columns: int = 1


@dataclass(frozen=True)
class _Record:
    """The header's JSON."""

    layers: dict[str, _Layer]
    edited: tuple[dict[str, object], ...]
    config: EditConfig
    batches: tuple[int, ...]
    seconds: float
    created: str
    versions: dict[str, str]
    tried: tuple[Tried, ...] = ()
    scores: tuple[dict[str, object], ...] = ()
    base_fingerprint: str = ""
    beside: dict[str, _Layer] = field(default_factory=dict)


def _patch(text: str, tensors: Mapping[str, Tensor]) -> EditPatch:
    """Raises UserError for whatever `save_patch` would not have written."""
    try:
        record = to_dataclass(_Record, parse_json(text), Place("its header", none="none"))
    except ValueError as error:
        raise UserError(f"its header is not valid JSON ({error}).") from None
    n = len(record.edited)
    if not n or sum(record.batches) != n or min(record.batches) < 1 or len(record.scores) not in (0, n):
        raise UserError(f"its batches and scores do not fit its {n} facts.")
    if not record.layers:
        raise UserError("it changes no layer.")
    edited = tuple(_edited(item, f"its fact {i}") for i, item in enumerate(record.edited))
    if min(each.columns for each in edited) < 1:
        raise UserError("a fact of it has no columns.")
    columns = sum(each.columns for each in edited)
    return EditPatch(
        layers={
            _number(name): _layer(name, said, tensors, columns if record.config.traits.finds_values else None)
            for name, said in record.layers.items()
        },
        values=_matrix(tensors, "values", rows=n),
        edited=edited,
        config=record.config,
        batches=record.batches,
        seconds=record.seconds,
        created=record.created,
        versions=record.versions,
        tried=record.tried,
        scores=record.scores,
        base_fingerprint=record.base_fingerprint,
        beside={_matrix_name(name): _layer(name, said, tensors, None) for name, said in record.beside.items()},
    )


def _matrix_name(name: str) -> str:
    if not BESIDE.fullmatch(name):
        raise UserError(f'"{visible(name[:40])}" is no matrix that an edit changes.')
    return name


def _number(name: str) -> int:
    if len(name) > 6 or not name.isdecimal() or name != str(int(name)):
        raise UserError(f'"{visible(name[:40])}" is not the number of a layer.')
    return int(name)


def _layer(name: str, said: _Layer, tensors: Mapping[str, Tensor], columns: int | None) -> LayerUpdate:
    """`columns` are those that the keys must have; None: the method has none, and its files of before hold zeros."""
    left = _matrix(tensors, f"{name}.left")
    right = _matrix(tensors, f"{name}.right", rows=left.shape[1])
    undo = None
    if said.edited_sha256 is not None:
        undo = _undo(name, said.edited_sha256, tensors, entries=left.shape[0] * right.shape[1])
    return LayerUpdate(
        left=left,
        right=right,
        keys=torch.zeros(right.shape[1], 0)
        if columns is None
        else _matrix(tensors, f"{name}.keys", rows=right.shape[1], columns=columns),
        expected_sha256=said.expected_sha256,
        covariance_sha256=said.covariance_sha256,
        undo=undo,
    )


def _undo(name: str, edited_sha256: str, tensors: Mapping[str, Tensor], entries: int) -> Undo:
    index, original = (_tensor(tensors, f"{name}.undo_{part}") for part in ("index", "original"))
    fits = index.dtype == torch.int32 and index.dim() == 1 and index.shape == original.shape
    if not fits or original.dtype not in DTYPES.values():
        raise UserError(f'its "{name}.undo_index" and "{name}.undo_original" do not fit each other.')
    if index.numel() and not (index.min() >= 0 and index.max() < entries):
        raise UserError(f'its "{name}.undo_index" points outside the weight of {entries:,} numbers.')
    _check_finite(original, f"{name}.undo_original")
    return Undo(edited_sha256, index, original)


def _matrix(tensors: Mapping[str, Tensor], name: str, *, rows: int | None = None, columns: int | None = None) -> Tensor:
    found = _tensor(tensors, name)
    if found.dim() != 2 or found.dtype != torch.float32 or not found.numel():
        raise UserError(f'its "{name}" is no float32 matrix.')
    if (rows or found.shape[0], columns or found.shape[1]) != tuple(found.shape):
        raise UserError(f'its "{name}" of {found.shape[0]} × {found.shape[1]} does not fit the rest.')
    _check_finite(found, name)
    return found


def _check_finite(tensor: Tensor, name: str) -> None:
    if not bool(tensor.isfinite().all()):
        raise UserError(f'its "{name}" holds NaN or infinite numbers.')


def _tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise UserError(f'it has no "{name}".')
    return tensors[name]


def _edited(item: Mapping[str, object], where: str) -> EditedFact:
    names = {each.name for each in fields(_How)}
    how = to_dataclass(_How, {name: value for name, value in item.items() if name in names}, Place(where))
    if not (0 <= how.probability <= 1 and how.shift >= 0 and how.steps >= 0):
        raise UserError(
            f"{where}: no value is found with p {how.probability:g}, ‖δ‖/‖h‖ {how.shift:g} in {how.steps} steps."
        )
    fact = fact_from_record({name: value for name, value in item.items() if name not in names}, where=where)
    return EditedFact(fact, how.lookup, how.probability, how.shift, how.steps, how.columns)
