"""benchmarks/gpu.py: every part runs to its end on a CPU, one that fails leaves the others, a limit is kept."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow  # the script starts Python for every part

ROOT = Path(__file__).resolve().parents[1]
PARTS = ["environment", "tests", "decode", "train", "grpo", "edit", "profile"]
STAGES = ["validation-sft", "validation-grpo", "validation-evaluation", "validation-edit"]


def run(folder: Path, *arguments: object, seconds: float = 180) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
    """The finished script, and its lines."""
    out = folder / "lines.jsonl"
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--size", "tiny", "--device", "cpu", "--out", out]
    done = subprocess.run([*map(str, (*command, *arguments))], capture_output=True, text=True, timeout=seconds)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines == ([json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []), done.stderr
    return done, lines


def test_every_part_runs_to_its_end(tmp_path: Path) -> None:
    done, lines = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line["part"] for line in lines] == [*PARTS, *STAGES]
    for line in lines:
        assert line["seconds"] > 0
        assert torch.__version__.startswith(line["environment"]["torch"])


def test_a_part_that_fails_says_why_and_the_others_run(tmp_path: Path) -> None:
    done, lines = run(tmp_path, "--parts", "train", "environment", "--model", tmp_path / "none")
    assert done.returncode == 1
    assert "failed: train" in done.stderr
    train, environment, again = lines
    assert 0 < train["mfu_of_measured_peak"] < 1
    assert torch.__version__.startswith(train["environment"]["torch"])
    assert environment["fp32_tflops"] > 0
    assert (again["part"], again["model"]) == ("train", "none")
    assert "none: no such" in again["failed"]


def test_a_part_that_does_not_exist_is_named(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "--parts", "evaluation")
    assert done.returncode == 2
    assert 'there is no part "evaluation"; the parts are environment, tests' in done.stderr


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    """The benchmarks can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield


@pytest.fixture(scope="module")
def told(scripts: None, tmp_path_factory: pytest.TempPathFactory) -> object:
    """What the parts are told; a model is there."""
    from gpt2 import problems_and_tokenizer, write
    from gpu_setting import Setting

    folder = tmp_path_factory.mktemp("work")
    write("tiny", problems_and_tokenizer(None)[1], folder / "base")
    return Setting("tiny", torch.device("cpu"), None, folder / "base", folder, limit_seconds=60.0)


def test_the_stages_of_the_validation_follow_one_another(told: Any) -> None:
    import gpu_validation

    sft, grpo = gpu_validation.sft(told), gpu_validation.grpo(told)
    evaluation, edit = gpu_validation.evaluation(told), gpu_validation.edit(told)
    assert (sft["steps_done"], sft["extrapolated"]) == (4, False)
    assert (grpo["steps_done"], grpo["extrapolated"]) == (4, False)
    assert grpo["median_sampler_gap"] < 1e-3
    assert evaluation["completions_done"] == evaluation["completions"] == 16
    assert edit["facts_done"] == edit["facts"]
    assert {file.name for file in told.work.iterdir()} >= {"sft", "grpo", "covariances"}


def test_a_stage_whose_time_is_over_is_extrapolated(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_validation

    recipe = told.recipe()
    long = replace(recipe, sft=replace(recipe.sft, steps=40))  # it is asked to stop five times a second, and hears late
    monkeypatch.setattr(type(told), "recipe", lambda _: long)
    found = gpu_validation.sft(replace(told, limit_seconds=0.0, work=told.work / "short"))
    assert 1 <= found["steps_done"] < found["steps"] == 40 and found["extrapolated"]
    assert found["whole_seconds"] > found["measured_seconds"]
    assert (told.work / "short" / "sft" / "config.json").is_file()  # the next stage begins from what was learned


def test_an_edit_is_looked_at_piece_by_piece(told: Any) -> None:
    import gpu_edit

    found = gpu_edit.edit(told)
    assert (found["facts"], found["layers"], found["covariance_tokens"]) == (4, [0], 2048)
    assert all(found[f"{piece}_seconds"] > 0 for piece in ("covariance", "values", "solve", "whole", "trace"))


@pytest.mark.parametrize(
    ("seconds", "left"),
    [
        ([9, 2, 2, 5, 2], 2 + 5 + 2 + 5),  # steps 0, 3, 6 and the last evaluate; the very first does not count
        ([9], 4 * 9 + 4 * 9),  # nothing else is known
        ([9, 3], 4 * 3 + 3 * 9),
        ([9, 2, 2, 5, 2, 2, 5, 2, 5], 0),
    ],
)
def test_what_is_left_takes_what_such_steps_took(seconds: list[float], left: float, scripts: None) -> None:
    from gpu_validation import LoopConfig, seconds_left

    config = LoopConfig(steps=9, evaluate_every=3)
    assert seconds_left([{"seconds": each} for each in seconds], config) == pytest.approx(left)


def test_a_part_over_its_limit_is_ended(scripts: None) -> None:
    from gpu import ended

    child = get_context("forkserver").Process(target=time.sleep, args=(600,))
    child.start()
    assert ended(child, 0.05) == "over its limit of 0.05 seconds"
    assert not child.is_alive()


def test_a_side_that_fails_says_why(scripts: None) -> None:
    from turns import take_turns

    with pytest.raises(RuntimeError, match="ours failed: TypeError"):
        take_turns({"ours": len}, [{"part": "one"}], {})
