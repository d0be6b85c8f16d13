"""The verb `patch`: an edit written into a model directory and taken out again, from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanogpt_edit import cli
from nanogpt_edit.edit.config import EditConfig
from nanogpt_edit.edit.editor import edit_model
from nanogpt_edit.edit.facts import Fact
from nanogpt_edit.edit.patch_files import load_patch, save_patch
from nanogpt_edit.model.checkpoint import fingerprint, load, save
from nanogpt_edit.model.gpt import GPT

FACTS = (
    Fact("The capital of France is", "France", target_new="Rome", target_true="Paris"),
    Fact("The Eiffel Tower is located in", "Eiffel Tower", target_new="London", target_true="Paris"),
)


@pytest.fixture
def edited(speaking_gpt: GPT, tmp_path: Path) -> tuple[Path, Path]:
    """(model directory, patch file): two facts edited, the patch not yet bound to the model."""
    blocks = torch.randint(0, 250, (40, 32), generator=torch.Generator().manual_seed(0))
    # An untrained model moves only when nothing holds it back.
    config = EditConfig(steps=20, n_prefixes=0, covariance_weight=0.01, clamp=20.0, weight_decay=0.0, kl_coef=0.0)
    save(speaking_gpt, tmp_path / "base")
    save_patch(edit_model(speaking_gpt, FACTS, config, covariance_blocks=blocks), tmp_path / "facts.safetensors")
    return tmp_path / "base", tmp_path / "facts.safetensors"


def test_applied_and_reverted_from_files_gives_the_same_weights(edited: tuple[Path, Path], tmp_path: Path) -> None:
    base, patch = edited
    assert cli.main(["patch", "apply", str(patch), str(base), "--out", str(tmp_path / "edited")]) == 0
    assert fingerprint(load(tmp_path / "edited")) != fingerprint(load(base))
    assert cli.main(["patch", "revert", str(patch), str(tmp_path / "edited"), "--out", str(tmp_path / "back")]) == 0
    back = load(tmp_path / "back")
    assert fingerprint(back) == fingerprint(load(base))
    assert back.lineage[-1].startswith("reverted: memit edit of 2 facts")


def test_show_lists_the_facts_and_drop_leaves_some_out(
    edited: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, patch = edited
    assert cli.main(["patch", "show", str(patch)]) == 0
    assert "   1  The Eiffel Tower is located in  Paris → London" in capsys.readouterr().out
    assert cli.main(["patch", "drop", str(patch), "1", "--out", str(tmp_path / "one.safetensors")]) == 0
    assert load_patch(tmp_path / "one.safetensors").facts == FACTS[:1]


def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    edited: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, patch = edited
    out = tmp_path / "out"
    for arguments, sentence in (
        (["aply"], 'patch has no verb "aply"; did you mean "apply"?'),
        (["drop", str(patch), "--out", str(out)], "which facts?"),
        (["drop", str(patch), "7", "--out", str(out)], "7"),
        (["revert", str(patch), str(base), "--out", str(out)], "are not the ones this patch left behind"),
        (["apply", str(base / "model.safetensors"), str(base), "--out", str(out)], "not a patch"),
    ):
        assert cli.main(["patch", *arguments]) == 2
        printed = capsys.readouterr().err
        assert sentence in printed
        assert printed.count("\n") == 1
        assert not out.exists()


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["patch", "--help"]) == 0
    assert "  revert  Take a patch out of an edited model" in capsys.readouterr().out
