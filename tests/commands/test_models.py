"""The verbs that look at one model: `info` and `sample`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nanogpt_edit import cli
from nanogpt_edit.checkpoint.checkpoint import fingerprint, load, save
from nanogpt_edit.common.device import choose_device
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import write_json
from nanogpt_edit.engine.generate import generate
from nanogpt_edit.model.gpt import GPT


@pytest.fixture
def saved(speaking_gpt: GPT, tmp_path: Path) -> str:
    save(speaking_gpt, tmp_path / "base", lineage_note="pretrained for 3 steps")
    return str(tmp_path / "base")


def test_info_says_what_a_model_is(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", saved]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    model = load(saved)
    assert printed["family"].startswith("gpt2 ")
    assert printed["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert printed["cache"].startswith("512 bytes")  # keys and values, 2 blocks, width 32, 4 bytes each
    assert printed["fingerprint"] == fingerprint(model)
    assert printed["lineage"] == "pretrained for 3 steps"
    assert cli.main(["info", saved, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == fingerprint(model)


def test_info_shows_what_others_wrote_and_does_not_obey_it(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(Path(saved) / "lineage.json", {"lineage": ["pretrained\x1b[2J"]})
    assert cli.main(["info", saved]) == 0
    assert "pretrained\\x1b[2J\n" in capsys.readouterr().out


def test_sample_prints_what_generate_gives(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", "Tom has 3", "--n", "2", "--max-new-tokens", "5", "--seed", "4"]
    assert cli.main(["sample", saved, *arguments]) == 0
    printed = capsys.readouterr().out
    for found in generate(load(saved), "Tom has 3", n=2, max_new_tokens=5, seed=4):
        assert found.text in printed
    assert "── 2 of 2 · 0 thinking and 0 answer tokens of" in printed


def test_sample_shows_every_token_of_a_transcript(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(saved)
    (found,) = generate(model, "Tom has 3", max_new_tokens=5)
    assert cli.main(["sample", saved, "--prompt", "Tom has 3", "--max-new-tokens", "5", "--transcript"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " id=" in line]
    assert model.tokenizer is not None
    assert len(lines) == len(model.tokenizer.encode("Tom has 3")) + len(found.token_ids)


def test_a_terminal_is_shown_control_characters_and_a_pipe_gets_them(
    saved: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = generate(load(saved), "Tom has 3", max_new_tokens=1)
    monkeypatch.setattr("nanogpt_edit.commands.sample.generate", lambda *_, **__: [replace(found, text="3\x1b[2J\r4")])
    assert cli.main(["sample", saved, "--prompt", "Tom has 3"]) == 0
    assert "3\x1b[2J\r4\n" in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.main(["sample", saved, "--prompt", "Tom has 3"]) == 0
    assert "3\\x1b[2J\\r4\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a", "--temperature", "-1"], "temperature -1.0 is negative"),
        (["--prompt", "a", "--device", "abacus"], 'device "abacus" cannot be used here; this machine has: cpu'),
        ([], "missing: --prompt"),
    ],
)
def test_a_bad_sample_command_is_one_line(
    saved: str, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sample", saved, *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"nanogpt-edit: {sentence}")
    assert printed.count("\n") == 1


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(tmp_path / "nowhere")]) == 2
    printed = capsys.readouterr().err
    assert "nowhere" in printed
    assert printed.count("\n") == 1


def test_threads_are_counted_from_one() -> None:
    with pytest.raises(UserError, match="threads is 0"):
        choose_device("cpu", threads=0)
