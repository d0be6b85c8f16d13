"""Patches come from other people: a right hash around contents that no edit wrote is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edit_world import PLAIN, covariance_blocks, facts, random_model
from torch import Tensor

from nanogpt_edit import cli
from nanogpt_edit.checkpoint.checked import read_checked, write_checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch import Undo
from nanogpt_edit.editing.patch_files import FORMAT, load_patch, save_patch

CONFIG = replace(PLAIN, covariance_weight=20.0, learning_rate=0.3, steps=3, n_prefixes=0, refine_steps=0)
Forger = Callable[[dict[str, Any], dict[str, Tensor]], None]


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch as an edit writes it."""
    path = tmp_path_factory.mktemp("genuine") / "edit.safetensors"
    save_patch(edit_model(random_model(), facts(2), CONFIG, covariance_blocks=covariance_blocks()), path)
    return path


def write(path: Path, tensors: dict[str, Tensor], record: str) -> Path:
    """A patch file with a hash that fits."""
    write_checked(path, tensors, text=record, entry="patch", format=FORMAT)
    return path


def forged(genuine: Path, path: Path, forge: Forger) -> Path:
    tensors, text = read_checked(genuine, entry="patch")
    record = json.loads(text)
    forge(record, tensors)
    return write(path, tensors, json.dumps(record))


def setting(name: str, value: object) -> Forger:
    return lambda record, _: record["config"].update({name: value})


def header(name: str, value: object) -> Forger:
    return lambda record, _: record.update({name: value})


def fact(name: str, value: object) -> Forger:
    return lambda record, _: record["edited"][1].update({name: value})


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Forger:
    return lambda _, tensors: tensors.update({name: change(tensors[name]).contiguous()})


def with_entry(value: float) -> Callable[[Tensor], Tensor]:
    def change(old: Tensor) -> Tensor:
        new = old.clone()
        new.view(-1)[0] = value
        return new

    return change


def renamed_layer(name: str) -> Forger:
    def forge(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        record["layers"] = {name: record["layers"]["0"]}
        for part in ("left", "right", "keys", "undo_index", "undo_original"):
            tensors[f"{name}.{part}"] = tensors[f"0.{part}"].clone()

    return forge


FORGERIES: dict[str, tuple[Forger, str]] = {
    "no layers": (header("layers", {}), "it changes no layer"),
    "layers a list": (header("layers", [0]), '"layers" must be a table'),
    "a layer that is a path": (renamed_layer("../../x"), '"../../x" is not the number of a layer'),
    "a layer of 5,000 digits": (renamed_layer("9" * 5000), "is not the number of a layer"),
    "a negative layer": (renamed_layer("-1"), '"-1" is not the number of a layer'),
    "a layer in other digits": (renamed_layer("\u0661"), "is not the number of a layer"),
    "a layer without its hash": (header("layers", {"0": {}}), '"expected_sha256" is missing'),
    "a hash that is a number": (header("layers", {"0": {"expected_sha256": 5}}), '"expected_sha256" must be text'),
    "no facts": (header("edited", []), "do not fit its 0 facts"),
    "facts that are no tables": (header("edited", [1, 2]), '"edited[0]" must be a table'),
    "batches of other facts": (header("batches", [5]), "do not fit its 2 facts"),
    "a negative batch": (header("batches", [3, -1]), "do not fit its 2 facts"),
    "scores of one fact": (header("scores", [{}]), "do not fit its 2 facts"),
    "seconds in words": (header("seconds", "long"), '"seconds" must be a number'),
    "seconds that are none": (header("seconds", float("nan")), "its header is not valid JSON"),
    "an unknown part": (header("run_me", "rm"), 'unknown field "run_me"'),
    "no lookup": (lambda record, _: record["edited"][1].pop("lookup"), '"lookup" is missing'),
    "a lookup that is none": (fact("lookup", "by magic"), '"lookup" must be one of "exact"'),
    "no prompt": (lambda record, _: record["edited"][1].pop("prompt"), '"prompt" is missing'),
    "a prompt that is no text": (fact("prompt", "half a pair \ud800"), "half of a surrogate pair"),
    "a method that does not exist": (setting("method", "magic"), 'method is "magic". There are memit'),
    "a setting of the wrong type": (setting("steps", "many"), '"steps" must be a whole number'),
    "layers that are words": (setting("layers", ["a"]), '"layers[0]" must be a whole number'),
    "a setting nobody has": (setting("stepz", 3), 'unknown field "stepz"'),
    "a setting out of bounds": (setting("clamp", -1.0), "clamp is -1.0"),
    "an infinite setting": (setting("clamp", 1e999), "its header is not valid JSON"),
    "NaN in a factor": (tensor("0.left", with_entry(float("nan"))), '"0.left" holds NaN or infinite numbers'),
    "infinity in a factor": (tensor("1.right", with_entry(float("inf"))), '"1.right" holds NaN or infinite'),
    "NaN in the values": (tensor("values", with_entry(float("nan"))), '"values" holds NaN'),
    "NaN to be put back": (
        lambda _, tensors: tensors.update(
            {"0.undo_index": torch.zeros(1, dtype=torch.int32), "0.undo_original": torch.full((1,), float("nan"))}
        ),
        '"0.undo_original" holds NaN',
    ),
    "a probability above one": (fact("probability", 1.5), "its fact 1: no value is found with p 1.5"),
    "a negative shift": (fact("shift", -0.1), "its fact 1: no value is found with p"),
    "steps before the first": (fact("steps", -3), "in -3 steps"),
    "factors that do not fit": (tensor("0.left", lambda old: old[:, :1]), '"0.right" of 2 × 192 does not fit'),
    "a factor in float64": (tensor("0.left", Tensor.double), '"0.left" is no float32 matrix'),
    "a factor without numbers": (tensor("0.left", lambda old: old[:0]), '"0.left" is no float32 matrix'),
    "keys of other facts": (tensor("0.keys", lambda old: old[:, :1]), '"0.keys" of 192 × 1 does not fit'),
    "a factor left out": (lambda _, tensors: tensors.pop("1.left"), 'it has no "1.left"'),
    "an undo index out of range": (
        lambda _, tensors: (
            tensors.update({"0.undo_index": torch.tensor([48 * 192]), "0.undo_original": torch.ones(1)})
            or tensors.update({"0.undo_index": tensors["0.undo_index"].int()})
        ),
        "points outside the weight of 9,216 numbers",
    ),
    "a negative undo index": (
        lambda _, tensors: tensors.update(
            {"0.undo_index": torch.tensor([-1], dtype=torch.int32), "0.undo_original": torch.ones(1)}
        ),
        "points outside",
    ),
    "another matrix than an edit changes": (
        header("beside", {"embed.weight": {"expected_sha256": ""}}),
        "no matrix that",
    ),
    "a layer under its weight's name": (
        header("beside", {"blocks.0.mlp.down.weight": {"expected_sha256": ""}}),
        '"blocks.0.mlp.down.weight" is no matrix that',
    ),
    "factors that are not there": (
        header("beside", {"blocks.0.attn.qkv.weight": {"expected_sha256": ""}}),
        'it has no "blocks.0.attn.qkv.weight.left"',
    ),
    "undo of two lengths": (
        lambda _, tensors: tensors.update({"0.undo_index": torch.zeros(3, dtype=torch.int32)}),
        "do not fit each other",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_patch_is_refused_by_every_verb(
    genuine: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    forge, sentence = FORGERIES[name]
    path = forged(genuine, tmp_path / "forged.safetensors", forge)
    with pytest.raises(UserError) as error:
        load_patch(path)
    assert str(error.value).startswith(f"{path}: no patch that an edit wrote: ")
    assert sentence in str(error.value)
    assert cli.main(["patch", "show", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("record", ["", "{", "[]", "null", "[" * 100_000, '{"layers": NaN}', "9" * 5000])
def test_a_header_that_is_no_record_is_refused(genuine: Path, tmp_path: Path, record: str) -> None:
    path = write(tmp_path / "forged.safetensors", read_checked(genuine, entry="patch")[0], record)
    with pytest.raises(UserError, match="no patch that an edit wrote"):
        load_patch(path)


def test_a_header_that_is_not_there_is_refused(genuine: Path, tmp_path: Path) -> None:
    tensors, _ = read_checked(genuine, entry="patch")
    path = tmp_path / "bare.safetensors"
    write_checked(path, tensors, text="", entry="notes", format=FORMAT)
    with pytest.raises(UserError, match="not valid JSON"):
        load_patch(path)


def test_control_characters_of_a_patch_are_shown_as_escapes(
    genuine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = forged(genuine, tmp_path / "forged.safetensors", header("created", "\x1b[2Jyesterday"))
    assert cli.main(["patch", "show", str(path)]) == 0
    assert r"\x1b[2Jyesterday" in capsys.readouterr().out


def test_an_undo_that_lies_is_found_anew_when_the_patch_is_applied(genuine: Path) -> None:
    """Else the edit would be written and could never be taken back."""
    model, patch = random_model(), load_patch(genuine)
    lie = Undo("0" * 64, torch.zeros(1, dtype=torch.int32), torch.full((1,), 7.0))
    forged_undo = replace(patch, layers={n: replace(update, undo=lie) for n, update in patch.layers.items()})
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    forged_undo.apply(model).revert(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("size", [1e6, 1e18, 3e38])
def test_a_change_out_of_all_proportion_is_refused(genuine: Path, tmp_path: Path, size: float) -> None:
    path = forged(genuine, tmp_path / "forged.safetensors", tensor("1.left", lambda old: torch.full_like(old, size)))
    model, patch = random_model(), load_patch(path)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(UserError, match=r"changes layer 1 by ‖ΔW‖ = .*no edit does that"):
        patch.apply(model)
    with pytest.raises(UserError, match="no edit does that"), patch.applied(model):
        pass
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
