"""`nanogpt-edit patch show | apply | revert | drop`: what can be done with the patch that an edit left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from nanogpt_edit.commands.parse import parse
from nanogpt_edit.edit.patch_algebra import drop_facts
from nanogpt_edit.edit.patch_files import load_patch, save_patch
from nanogpt_edit.errors import UserError, did_you_mean
from nanogpt_edit.model.checkpoint import load, save
from nanogpt_edit.progress import say

PatchFile = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATCH")]
Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


@dataclass(frozen=True)
class Show:
    """List the facts of a patch, and which weights it changes."""

    patch: PatchFile
    """The .safetensors file that an edit wrote."""


@dataclass(frozen=True)
class Apply:
    """Write a patch into the model it was made for, and save the edited model."""

    patch: PatchFile
    """The .safetensors file that an edit wrote."""
    model: Model
    """The model directory as it was before the edit; any other is refused."""
    out: Path
    """Directory of the edited model."""


@dataclass(frozen=True)
class Revert:
    """Take a patch out of an edited model, bit for bit, and save the original."""

    patch: PatchFile
    """The .safetensors file that an edit wrote."""
    model: Model
    """The directory of the edited model."""
    out: Path
    """Directory of the original model."""


@dataclass(frozen=True)
class Drop:
    """Leave some facts out of a patch; what stays says the same as before."""

    patch: PatchFile
    """The .safetensors file that an edit wrote."""
    facts: Annotated[tuple[int, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NUMBER…")]
    """Numbers of the facts, as `patch show` lists them."""
    out: Path
    """The new patch file."""


def patch(arguments: list[str]) -> int:
    """The verb `patch`."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: nanogpt-edit patch VERB PATCH [arguments]\n")
        for verb, (_, kind) in VERBS.items():
            print(f"  {verb:<8}{kind.__doc__!s}")
        print("\nnanogpt-edit patch VERB --help explains the arguments.")
        return 0
    if name not in VERBS:
        raise UserError(f'patch has no verb "{name}"{did_you_mean(name, VERBS)} It has: {", ".join(VERBS)}.')
    work, kind = VERBS[name]
    return work(parse(kind, arguments[1:], verb=f"patch {name}"))


def show(chosen: Show) -> int:
    found = load_patch(chosen.patch)
    print(f"{found.describe()}, {found.seconds:.1f} s")
    for number, edited in enumerate(found.edited):
        fact = edited.fact
        print(f"{number:>4}  {fact.prompt}  {fact.target_true or '?'} → {fact.target_new}")
    for layer, update in found.layers.items():
        print(f"layer {layer}: expects weights {update.expected_sha256[:16]}…")
    return 0


def apply(chosen: Apply) -> int:
    found = load_patch(chosen.patch)
    model = load(chosen.model)
    bound = found.apply(model)
    if any(update.undo is None for update in found.layers.values()):
        save_patch(bound, chosen.patch)
        say(f"{chosen.patch} now also holds what revert needs.")
    save(model, chosen.out)
    print(f"The edited model: {chosen.out}")
    return 0


def revert(chosen: Revert) -> int:
    found = load_patch(chosen.patch)
    model = load(chosen.model)
    found.revert(model)
    save(model, chosen.out, lineage_note=f"reverted: {found.describe()}")
    print(f"The original model: {chosen.out}")
    return 0


def drop(chosen: Drop) -> int:
    if not chosen.facts:
        raise UserError("which facts? Give their numbers, as nanogpt-edit patch show lists them.")
    smaller = drop_facts(load_patch(chosen.patch), chosen.facts)
    save_patch(smaller, chosen.out)
    print(f"{smaller.describe()}: {chosen.out}")
    return 0


VERBS: dict[str, tuple[Callable[[Any], int], type[Any]]] = {
    "show": (show, Show),
    "apply": (apply, Apply),
    "revert": (revert, Revert),
    "drop": (drop, Drop),
}
