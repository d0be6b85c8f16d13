"""The verbs of `nanogpt-edit patch` and what each is told; nothing heavy is imported: --help answers at once."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nanogpt_edit.commands.parse import run_inner

PatchFile = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATCH")]
PatchFiles = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATCH…", help_behavior_hint="(any number)")
]
Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


@dataclass(frozen=True)
class Show:
    """List the facts of a patch, and which weights it changes."""

    patch: PatchFile
    """The .safetensors file that an edit wrote."""


@dataclass(frozen=True)
class Apply:
    """Write patches into the model they were made for, and save the edited model, which carries them."""

    model: Model
    """The model directory as it was before the edit; any other is refused."""
    patches: PatchFiles
    """The .safetensors files that edits wrote, in the order in which they were made."""
    out: Path
    """Directory of the edited model."""
    rebase: bool = False
    """Accept any weights: find the values and solve anew on them."""
    text: str | None = None
    """With --rebase: ordinary text for the covariance: a file, a folder, a hub data set (None: the embedded world)."""


@dataclass(frozen=True, kw_only=True)
class Revert:
    """Take patches out of an edited model, bit for bit, and save what it was before."""

    model: Model
    """The directory of the edited model."""
    patches: PatchFiles = ()
    """The .safetensors files, in the order in which they were applied (none: all that the model carries)."""
    out: Path
    """Directory of the original model."""


@dataclass(frozen=True)
class Drop:
    """Leave some facts out of a patch; what stays says the same as before."""

    patch: PatchFile
    """The .safetensors file that an edit wrote."""
    fact: tuple[int, ...]
    """Numbers of the facts, as `patch show` lists them."""
    out: Path
    """The new patch file."""


@dataclass(frozen=True)
class Merge:
    """Solve the facts of two patches of one model jointly. Facts that contradict each other are listed and refused."""

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATCH")]
    """A .safetensors file that an edit wrote; its settings are taken."""
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATCH")]
    """Another one, of the same model."""
    model: str
    """The model directory as it was before either."""
    out: Path
    """The new patch file."""
    text: str | None = None
    """Ordinary text for the covariance, a file, a folder or a hub data set (None: the embedded world)."""


@dataclass(frozen=True)
class Diff:
    """Which facts, and how much weight change, two patches share."""

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATCH")]
    """A .safetensors file that an edit wrote."""
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATCH")]
    """Another one."""


@dataclass(frozen=True)
class Export:
    """Write a patch as a LoRA adapter, which peft, vLLM and llama.cpp add to the untouched model, with a dial."""

    patch: PatchFile
    """The .safetensors file that an edit wrote."""
    to: tuple[Literal["peft", "gguf"], Path]
    """`peft DIR` for peft and vLLM, `gguf FILE` for llama.cpp's --lora."""
    model: str | None = None
    """The model as it was before the edit (None: the one of the run in whose folder the patch lies)."""


VERBS: dict[str, type[Any]] = {
    "show": Show,
    "apply": Apply,
    "revert": Revert,
    "drop": Drop,
    "merge": Merge,
    "diff": Diff,
    "export": Export,
}


def patch(arguments: list[str]) -> int:
    """The verb `patch`."""
    return run_inner(VERBS, arguments, verb="patch", work=_work)


def _work(name: str, chosen: Any) -> int:
    work: Callable[[Any], int] = getattr(importlib.import_module("nanogpt_edit.commands.patch"), name)
    return work(chosen)
