"""`nanogpt-edit doctor`: what it says of a recipe before the run, and of a run that has come half-way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from micro import MICRO

from nanogpt_edit.cli import main
from nanogpt_edit.doctor import model_checks
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.recipe import Recipe, save_recipe
from nanogpt_edit.pipeline.stages import BASE, make_model


def doctor(recipe: Recipe, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit status and lines of the verb for `recipe`, with the run in `folder`."""
    save_recipe(recipe, folder / "micro.toml")
    status = main(["doctor", str(folder / "micro.toml"), "--out", str(folder / "run")])
    return status, capsys.readouterr().out.splitlines()


def test_a_recipe_is_examined_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = doctor(MICRO, tmp_path, capsys)
    assert status == 0
    assert "Before SFT, with an untrained model" in lines
    assert "Before GRPO, with an untrained model" in lines
    checks = [line[8:].partition(":")[0] for line in lines if line.startswith("  ")]
    assert checks == [
        *("held-out text", "warm-up", "memory"),
        *("loss mask", "prompt", "test questions", "lengths", "weights", "warm-up", "memory"),
        *("gold answers", "test questions", "sampler and trainer", "reference", "signal", "warm-up", "memory"),
    ]
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_begun_is_examined_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(BASE, RunInputs(MICRO), RunFolder(tmp_path / "run"), torch.device("cpu"), None)
    assert f"Before SFT, with {tmp_path / 'run' / 'base'}" in doctor(MICRO, tmp_path, capsys)[1]


def test_a_check_that_fails_ends_in_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No data that the readers let through fails; so the bound on the sampler's gap is set where nothing can meet it.
    monkeypatch.setattr(model_checks, "LARGEST_SAMPLER_GAP", -1.0)
    monkeypatch.setattr(model_checks, "FAR_OFF", -1.0)
    status, lines = doctor(MICRO, tmp_path, capsys)
    assert status == 2
    assert any(line.startswith("  FAIL  sampler and trainer: ") for line in lines)


def test_a_recipe_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 2
    assert "nanogpt-edit doctor tiny --out runs/tiny" in capsys.readouterr().err
