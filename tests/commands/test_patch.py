"""The verb `patch`: an edit written into a model directory and taken out again, from files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from edit_world import PLAIN

from nanogpt_edit import cli
from nanogpt_edit.checkpoint.checkpoint import fingerprint, load, save
from nanogpt_edit.data.fact_files import fact_to_record
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch_files import carried_patches, load_patch, save_edited, save_patch
from nanogpt_edit.model.gpt import GPT

# The subject ends the prompt: a value in the last layer is read where it stands.
FACTS = (
    Fact("The capital of France", "France", target_new="Rome", target_true="Paris"),
    Fact("The city of the Eiffel Tower", "Eiffel Tower", target_new="London", target_true="Paris"),
)
# An untrained model moves only when nothing holds it back.
QUICK = ["--edit.method", "ft", "--edit.steps", "3", "--device", "cpu"]
CONFIG = replace(PLAIN, steps=20, n_prefixes=0, covariance_weight=0.01, clamp=20.0, weight_decay=0.0, kl_coef=0.0)


@pytest.fixture
def edited(speaking_gpt: GPT, tmp_path: Path) -> tuple[Path, Path]:
    """(model directory, patch file): two facts edited, the patch not yet bound to the model."""
    blocks = torch.randint(0, 250, (40, 32), generator=torch.Generator().manual_seed(0))
    save(speaking_gpt, tmp_path / "base")
    save_patch(edit_model(speaking_gpt, FACTS, CONFIG, covariance_blocks=blocks), tmp_path / "facts.safetensors")
    return tmp_path / "base", tmp_path / "facts.safetensors"


def names(directory: Path) -> list[str]:
    return [name for name, _ in carried_patches(directory)]


def test_applied_and_reverted_from_files_gives_the_same_weights(edited: tuple[Path, Path], tmp_path: Path) -> None:
    base, patch = edited
    assert cli.main(["patch", "apply", str(base), str(patch), "--out", str(tmp_path / "edited")]) == 0
    assert fingerprint(load(tmp_path / "edited")) != fingerprint(load(base))
    assert cli.main(["patch", "revert", str(tmp_path / "edited"), str(patch), "--out", str(tmp_path / "back")]) == 0
    back = load(tmp_path / "back")
    assert fingerprint(back) == fingerprint(load(base))
    assert str(back.lineage[-1]).startswith("reverted: memit edit of 2 facts")


def test_an_edited_model_carries_its_patches_and_gives_them_all_back(edited: tuple[Path, Path], tmp_path: Path) -> None:
    base, patch = edited
    once, twice, back = (tmp_path / name for name in ("once", "twice", "back"))
    assert cli.main(["patch", "apply", str(base), str(patch), "--out", str(once)]) == 0
    assert names(once) == ["facts"]
    second = tmp_path / "tower.safetensors"
    blocks = torch.randint(0, 250, (40, 32), generator=torch.Generator().manual_seed(0))
    save_patch(edit_model(load(once), FACTS[1:], CONFIG, covariance_blocks=blocks), second)
    assert cli.main(["patch", "apply", str(once), str(second), "--out", str(twice)]) == 0
    assert names(twice) == ["facts", "tower"]
    assert cli.main(["patch", "revert", str(twice), "--out", str(back)]) == 0
    assert fingerprint(load(back)) == fingerprint(load(base))
    assert carried_patches(back) == []
    assert cli.main(["patch", "revert", str(back), "--out", str(tmp_path / "further")]) == 2


@pytest.mark.parametrize("spelt", ["{}", "{}/", "{}/../base"])
def test_the_model_that_patches_are_for_is_never_overwritten(
    edited: tuple[Path, Path], spelt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base, run = edited
    before = fingerprint(load(base))
    patch = str(run / "edits" / "facts.safetensors")
    for command in (["apply", str(base), patch], ["revert", str(base), patch]):
        assert cli.main(["patch", *command, "--out", spelt.format(base)]) == 2
        assert "name another folder" in capsys.readouterr().err
    assert fingerprint(load(base)) == before


@pytest.fixture
def two_edits(edited: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """(base, first, second): the verb `edit` run on a model and on what came of it, both with facts called "facts"."""
    base, _ = edited
    source = base
    for letter, fact in zip("ab", FACTS, strict=True):
        file = tmp_path / letter / "facts.jsonl"
        file.parent.mkdir()
        file.write_text(json.dumps(fact_to_record(fact)) + "\n")
        assert cli.main(["edit", str(source), str(file), "--out", str(file.parent), *QUICK]) == 0
        source = file.parent / "edited"
    return base, tmp_path / "a", tmp_path / "b"


def test_edits_one_after_the_other_are_all_carried_and_all_come_off(
    two_edits: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, _, second = two_edits
    assert [patch.facts for _, patch in carried_patches(second / "edited")] == [FACTS[:1], FACTS[1:]]
    capsys.readouterr()
    assert cli.main(["patch", "revert", str(second / "edited"), "--out", str(tmp_path / "back")]) == 0
    whole = fingerprint(load(base))
    assert fingerprint(load(tmp_path / "back")) == whole
    assert f"The original model, bit for bit (its fingerprint is {whole[:16]}…)" in capsys.readouterr().out


def test_patches_of_one_name_are_both_applied_and_both_taken_out(
    two_edits: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, second = two_edits
    files = [str(folder / "edits" / "facts.safetensors") for folder in (first, second)]
    out, back = tmp_path / "out", tmp_path / "back"
    assert cli.main(["patch", "apply", str(base), *files, "--out", str(out)]) == 0
    assert names(out) == ["facts", "facts"]
    assert fingerprint(load(out)) == fingerprint(load(second / "edited"))
    assert cli.main(["patch", "revert", str(out), "--out", str(back)]) == 0
    assert fingerprint(load(back)) == fingerprint(load(base))


def test_what_is_left_is_said_as_far_as_it_is_known(
    two_edits: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first, second = two_edits
    newest = second / "edits" / "facts.safetensors"

    def revert(model: Path, *patches: Path) -> str:
        capsys.readouterr()
        assert cli.main(["patch", "revert", str(model), *map(str, patches), "--out", str(tmp_path / "out")]) == 0
        return capsys.readouterr().out

    # The newest of two: the other stays, and nothing is called original.
    assert "The model without them, which still carries facts:" in revert(second / "edited", newest)
    assert names(tmp_path / "out") == ["facts"]
    assert fingerprint(load(tmp_path / "out")) == fingerprint(load(first / "edited"))
    # A patch that an earlier version wrote does not know the whole model.
    old = replace(load_patch(newest), base_fingerprint="")
    save_edited(load(second / "edited"), tmp_path / "old", [("facts", old)])
    assert "cannot be told, for the patch names none:" in revert(tmp_path / "old")
    # Weights changed elsewhere: the edit comes off, and the model is not the original.
    changed = load(first / "edited")
    with torch.no_grad():
        changed.norm.weight[0] += 1.0
    save_edited(changed, tmp_path / "changed", carried_patches(first / "edited"))
    assert "cannot be told, for the patch names another fingerprint:" in revert(tmp_path / "changed")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_edit_keeps_the_dtype_of_the_file(speaking_gpt: GPT, tmp_path: Path, dtype: torch.dtype) -> None:
    base, out, applied, back = (tmp_path / name for name in ("base", "out", "applied", "back"))
    save(speaking_gpt.to(dtype), base)
    (tmp_path / "facts.jsonl").write_text(json.dumps(fact_to_record(FACTS[0])) + "\n")
    assert cli.main(["edit", str(base), str(tmp_path / "facts.jsonl"), "--out", str(out), *QUICK]) == 0
    patch = out / "edits" / "facts.safetensors"
    assert cli.main(["patch", "apply", str(base), str(patch), "--out", str(applied)]) == 0
    assert cli.main(["patch", "revert", str(applied), "--out", str(back)]) == 0
    assert {load(path).dtype for path in (base, out / "edited", applied, back)} == {dtype}
    assert fingerprint(load(applied)) == fingerprint(load(out / "edited")) != fingerprint(load(base))
    assert fingerprint(load(back)) == fingerprint(load(base))


def test_other_weights_are_refused_unless_rebased(
    edited: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, patch = edited
    model = load(base)
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[0, 0] += 1.0
    save(model, tmp_path / "other")
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. Tom has 3 apples. He buys 14 more.\n" * 40, encoding="utf-8")
    arguments = ["patch", "apply", str(tmp_path / "other"), str(patch), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "--rebase" in capsys.readouterr().err
    assert cli.main([*arguments, "--rebase", "--text", str(text)]) == 0
    ((_, carried),) = carried_patches(tmp_path / "out")
    assert carried.facts == FACTS
    carried.check(load(tmp_path / "other"))


def test_show_lists_the_facts_and_drop_leaves_some_out(
    edited: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, patch = edited
    assert cli.main(["patch", "show", str(patch)]) == 0
    assert "   1  The city of the Eiffel Tower  Paris → London" in capsys.readouterr().out
    assert cli.main(["patch", "drop", str(patch), "--fact", "1", "--out", str(tmp_path / "one.safetensors")]) == 0
    assert load_patch(tmp_path / "one.safetensors").facts == FACTS[:1]


def test_merge_joins_two_patches_and_diff_tells_them_apart(
    edited: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, patch = edited
    parts = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for number, part in enumerate(parts):
        cli.main(["patch", "drop", str(patch), "--fact", str(number), "--out", str(part)])
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. Tom has 3 apples. He buys 14 more.\n" * 40, encoding="utf-8")
    whole = tmp_path / "whole.safetensors"
    arguments = ["--model", str(base), "--text", str(text), "--out", str(whole)]
    assert cli.main(["patch", "merge", *map(str, parts), *arguments]) == 0
    assert load_patch(whole).facts == (FACTS[1], FACTS[0])
    capsys.readouterr()
    assert cli.main(["patch", "diff", str(parts[0]), str(whole)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0 facts only in the first"
    assert lines[1:3] == ["1 facts only in the second", "      The capital of France  Paris → Rome"]
    assert "1 facts in both" in lines
    assert lines[-1] == "made for the same weights"


def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    edited: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, patch = edited
    out = tmp_path / "out"
    for arguments, sentence in (
        (["aply"], 'patch has no verb "aply"; did you mean "apply"?'),
        (["drop", str(patch), "--fact", "--out", str(out)], "which facts?"),
        (["drop", str(patch), "--fact", "7", "--out", str(out)], "7"),
        (["apply", str(base), "--out", str(out)], "which patches?"),
        (["revert", str(base), str(patch), "--out", str(out)], "are not the ones this patch left behind"),
        (["revert", str(base), "--out", str(out)], "carries no patches"),
        (["apply", str(base), str(base / "model.safetensors"), "--out", str(out)], "not a patch"),
    ):
        assert cli.main(["patch", *arguments]) == 2
        printed = capsys.readouterr().err
        assert sentence in printed
        assert printed.count("\n") == 1
        assert not out.exists()


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["patch", "--help"]) == 0
    assert "  revert  Take patches out of an edited model" in capsys.readouterr().out
