"""Saved states: tensors and a few numbers, complete or absent, and checked byte by byte before they are used.

A state is one safetensors file written by the first process; of a model in shards it is a folder to which every process
writes its part (torch.distributed.checkpoint, also as safetensors: nothing is ever unpickled). Either can be read by
any number of processes, with shards or without.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_edit.checkpoint.checked import read_checked, write_checked
from nanogpt_edit.common import distributed
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import sha256_of_file, write_json
from nanogpt_edit.common.records import read_json_as
from nanogpt_edit.common.terminal import say

KEPT = 2
NOTES = "notes.json"
BEST = ("best", "best.safetensors")  # of a model in shards, of any other

Place = Callable[[str, torch.Size], Tensor]
"""Where a tensor of that name and shape belongs."""


def path_of(folder: Path, step: int, *, shards: bool) -> Path:
    return folder / f"step_{step:08}{'' if shards else '.safetensors'}"


def save(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, float], *, shards: bool) -> None:
    """Write a state; every process must call it."""
    if shards:
        save_shards(path, tensors, notes)
    elif distributed.is_first():
        save_tensors(path, tensors, notes)


def save_step(folder: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, float], *, shards: bool) -> None:
    """Write the state of a step, and delete all but it and the newest few before it.

    States of later steps go too: they were found damaged when the stage went on from an earlier one.
    """
    new = path_of(folder, int(notes["step"]), shards=shards)
    save(new, tensors, notes, shards=shards)
    if distributed.is_first():
        before = [path for path in stored_steps(folder) if path.stem < new.stem]
        for path in stored_steps(folder):
            if path.stem != new.stem and path not in before[: KEPT - 1]:
                remove(path)


def stored_steps(folder: Path) -> list[Path]:
    """The states of steps, newest first."""
    return sorted(folder.glob("step_*"), key=lambda path: path.stem, reverse=True)


def load(path: Path, place: Place) -> dict[str, float]:
    """Check a state, then copy its tensors where they belong -> its notes. Every process must call it.

    Raises UserError naming the file when it is damaged; nothing has been copied then.
    """
    if path.is_dir():
        return load_shards(path, place)
    tensors, notes = load_tensors(path)
    for name in sorted(tensors):
        fill(place(name, tensors[name].shape), tensors[name])
    return notes


def load_newest(folder: Path, place: Place) -> dict[str, float] | None:
    """Load the newest state of `folder` that is whole -> its notes; None when there is none. Damaged ones are named."""
    found = stored_steps(folder)
    for path in found:
        try:
            return load(path, place)
        except UserError as error:
            last = path == found[-1]
            say(f"{error} {'No other is there; it begins again.' if last else 'The state before it is used.'}")
    return None


def save_best(folder: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, float], *, shards: bool) -> None:
    """Write the best weights, in the place of those before."""
    new, other = BEST if shards else BEST[::-1]
    save(folder / new, tensors, notes, shards=shards)
    if distributed.is_first():  # a run may have begun with shards and gone on without, or the other way round
        remove(folder / other)


def best_of(folder: Path) -> Path | None:
    """The state of the best weights, where there is one."""
    return next((folder / name for name in BEST if (folder / name).exists()), None)


def remove(path: Path) -> None:
    """Delete a state, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@torch.no_grad()
def fill(destination: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a tensor or into the shards of one."""
    if hasattr(destination, "device_mesh"):
        from torch.distributed.tensor import DTensor, distribute_tensor  # here, for it takes a second

        assert isinstance(destination, DTensor)
        value = distribute_tensor(value.to(destination.device), destination.device_mesh, destination.placements)
    destination.copy_(value)


# --- one file ---------------------------------------------------------------------------------------------------------


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, float]) -> None:
    """Write tensors and a few numbers as one checked file, atomically."""
    write_checked(path, tensors, text=json.dumps(dict(notes)), entry="notes")


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Read what `save_tensors` wrote. Raises UserError naming the file when it is damaged."""
    tensors, text = read_checked(path, entry="notes")
    return tensors, json.loads(text)


# --- a part per process -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardNotes:
    """notes.json of a state in parts."""

    notes: str
    """JSON once more, for a score may be infinite."""
    sha256: Mapping[str, str]
    """Of each part, by file name."""


def save_shards(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, float]) -> None:
    """Write this process's part beside the others', then checksums of all parts, then give the folder its name."""
    from torch.distributed.checkpoint.api import CheckpointException  # here, for they take a second
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts

    part = path.with_name(f".{path.name}.part")
    if distributed.is_first():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    distributed.barrier()
    try:
        save_parts(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True))
    except CheckpointException as error:  # a BaseException, which nothing above would turn into a sentence
        raise RuntimeError(f"{path} could not be written: {error}") from error
    names = sorted(file.name for file in part.iterdir())
    sums = distributed.map_over_ranks(names, lambda own: [sha256_of_file(part / name) for name in own])
    if distributed.is_first():
        write_json(part / NOTES, asdict(ShardNotes(json.dumps(dict(notes)), dict(zip(names, sums, strict=True)))))
        shutil.rmtree(path, ignore_errors=True)
        os.rename(part, path)
    distributed.barrier()


def load_shards(path: Path, place: Place) -> dict[str, float]:
    """Read what `save_shards` wrote. Raises UserError naming the file that is damaged."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load as load_parts

    about = read_json_as(ShardNotes, path / NOTES)
    sums, notes = about.sha256, json.loads(about.notes)
    found = distributed.map_over_ranks(list(sums), lambda own: [_sum_or_nothing(path / name) for name in own])
    for name, expected, actual in zip(sums, sums.values(), found, strict=True):
        if actual != expected:
            raise UserError(f"{path / name}: damaged (its contents do not match its checksum).")
    reader = HuggingFaceStorageReader(str(path))
    places = {}
    for name, entry in sorted(reader.read_metadata().state_dict_metadata.items()):
        assert isinstance(entry, TensorStorageMetadata)
        places[name] = place(name, entry.size).detach()
    load_parts(places, storage_reader=reader)
    return dict(notes)


def _sum_or_nothing(file: Path) -> str:
    return sha256_of_file(file) if file.is_file() else ""
