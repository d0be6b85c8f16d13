"""The verbs that measure: `evaluate`, `compare` and `report`."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TEXTS, tiny_config
from report_run import make_run

from nanogpt_edit import cli
from nanogpt_edit.checkpoint.checkpoint import save
from nanogpt_edit.commands import evaluate
from nanogpt_edit.data.world.world import WorldConfig, make_world
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.evaluation.records import read_records
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.pipeline import fitted
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.measure import measure
from nanogpt_edit.pipeline.recipe import load_recipe, save_recipe

QUICK = ["--evaluate.problems", "3", "--evaluate.samples", "2", "--evaluate.arithmetic-samples", "1"]
QUICK += ["--evaluate.max-new-tokens", "4", "--device", "cpu"]


@pytest.fixture
def saved(speaking_gpt: GPT, tmp_path: Path) -> Path:
    save(speaking_gpt, tmp_path / "run" / "sft")
    return tmp_path / "run" / "sft"


@pytest.fixture
def random_gpt_64(tmp_path: Path) -> Path:
    tokenizer = Tokenizer.train(TEXTS, vocab_size=300)
    path = tmp_path / "small"
    save(GPT(tiny_config("gpt2", vocab_size=tokenizer.vocab_size), seed=0), path, tokenizer=tokenizer)
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Thirty problems of one file, which `load_splits` cuts into three."""
    lines = [{"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(30)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_what_a_small_model_cannot_read_is_left_out_and_said(
    random_gpt_64: Path, problems: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's own questions are longer than a model of 64 positions reads."""
    told: list[str] = []
    monkeypatch.setattr(fitted, "say", told.append)
    assert cli.main(["evaluate", str(random_gpt_64), "--problems.path", str(problems), *QUICK]) == 0
    (note,) = told
    assert note.startswith("arithmetic: 10 of 50 problems were left out because their question leaves no room")
    assert "pass_at_1" in capsys.readouterr().out


def test_an_evaluation_is_printed_kept_and_compared(
    saved: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = saved.parent / "eval"
    text = problems.with_name("text.txt")
    text.write_text("Tom has 3 apples. " * 200)
    extra = ["--problems.path", str(problems), "--evaluate.text", str(text), "--out", str(kept)]
    assert cli.main(["evaluate", str(saved), *extra, *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "pass_at_1" in printed
    assert "nats_per_token" in printed
    records = [record for record in read_records(kept / "sft.jsonl") if record.skill == "problems"]
    assert len(records) == 3 * 2
    assert all(record.prompt.startswith("What is") for record in records)

    # A stage of a run stands for the records the run keeps of it, and a file stands for itself.
    assert cli.main(["compare", str(saved), str(kept / "sft.jsonl")]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pass_at_1 ")]
    assert row.split()[1] == "+0"
    assert "inconclusive" in row
    capsys.readouterr()
    assert cli.main(["compare", str(kept), str(kept / "sft.jsonl"), "--json"]) == 0  # the folder of one evaluation, too
    found = json.loads(capsys.readouterr().out)["pass_at_1"]
    assert (found["delta"], found["n"], found["verdict"]) == (0, 3, "inconclusive")


def test_a_model_in_a_run_is_measured_as_its_report_measures_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(evaluate, "say", told.append)
    world = WorldConfig(problems=40, validation=4, test=5, largest_addend=12)
    recipe = replace(load_recipe("tiny"), seed=3, world=world, device="cpu")
    recipe = replace(recipe, evaluate=EvaluateConfig(problems=3, samples=2, arithmetic_samples=1, max_new_tokens=4))
    save_recipe(recipe, saved.parent / "recipe.toml")
    measure(RunInputs(recipe), RunFolder(saved.parent), torch.device("cpu"), "sft", samples=2)
    assert cli.main(["evaluate", str(saved), "--out", str(saved.parent / "own"), "--device", "cpu"]) == 0
    assert told[0].startswith(f"Measured as the report of {saved.parent} does: its test problems, arithmetic, facts")
    own, report = (saved.parent / folder / "sft.jsonl" for folder in ("own", "eval"))
    assert own.read_bytes() == report.read_bytes()
    ours, theirs = (json.loads(path.with_suffix(".json").read_text()) for path in (own, report))
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert set(ours["skills"]) == {"problems", "arithmetic", "probes", "facts", "perplexity"}
    asked = {r.prompt for r in read_records(own) if r.skill == "problems"}
    assert asked == {p.question for p in make_world(replace(world, seed=3)).problems.test[:3]}


def test_in_a_run_what_is_given_goes_before_its_recipe(saved: Path) -> None:
    world = WorldConfig(problems=40, validation=4, test=5, largest_addend=12)
    save_recipe(replace(load_recipe("tiny"), seed=3, world=world), saved.parent / "recipe.toml")
    own = saved.parent / "own"
    assert cli.main(["evaluate", str(saved), "--split", "validation", "--out", str(own), *QUICK]) == 0
    asked = [r.prompt for r in read_records(own / "sft.jsonl") if r.skill == "problems"]
    assert set(asked) == {p.question for p in make_world(replace(world, seed=3)).problems.validation[:3]}
    assert len(asked) == 3 * 2


def test_an_edited_model_is_sampled_as_often_as_its_report_does(speaking_gpt: GPT, tmp_path: Path) -> None:
    save(speaking_gpt, tmp_path / "run" / "edited")
    recipe = replace(load_recipe("tiny"), world=WorldConfig(problems=40, validation=4, test=5, largest_addend=12))
    recipe = replace(recipe, evaluate=EvaluateConfig(samples=9, edited_samples=2, arithmetic_samples=1))
    save_recipe(recipe, tmp_path / "run" / "recipe.toml")
    quick = ["--evaluate.problems", "3", "--evaluate.max-new-tokens", "4", "--device", "cpu"]
    for given, samples in (([], 2), (["--evaluate.samples", "3"], 3)):
        own = tmp_path / f"own{samples}"
        assert cli.main(["evaluate", str(tmp_path / "run" / "edited"), "--out", str(own), *quick, *given]) == 0
        assert len([r for r in read_records(own / "edited.jsonl") if r.skill == "problems"]) == 3 * samples


def test_a_model_that_stands_in_no_run_says_what_it_is_measured_on(
    saved: Path, problems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(evaluate, "say", told.append)
    assert cli.main(["evaluate", str(saved), "--problems.path", str(problems), *QUICK]) == 0
    assert told[0] == "Measured on validation problems, arithmetic and probes."


def test_only_the_asked_split_is_measured(saved: Path, problems: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {}
    for split in ("validation", "test"):
        out = saved.parent / split
        arguments = ["--split", split, "--problems.path", str(problems), "--out", str(out), *QUICK]
        assert cli.main(["evaluate", str(saved), *arguments]) == 0
        asked[split] = {r.prompt for r in read_records(out / "sft.jsonl") if r.skill == "problems"}
    assert asked["validation"].isdisjoint(asked["test"])


def test_what_cannot_be_measured_is_one_line(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    for arguments, sentence in (
        (["evaluate", str(saved), "--problems.path", str(tmp_path / "nowhere.jsonl")], "nowhere.jsonl"),
        (["evaluate", str(saved), "--problems.path", str(tmp_path / "empty.jsonl")], "empty.jsonl"),
        (["compare", str(saved), str(tmp_path / "nowhere.jsonl")], "no evaluation of it at"),
        (["compare", str(tmp_path / "nowhere"), str(saved)], "nowhere: no such file or folder; name a stage of a run"),
        (["evaluate", str(saved), "--evaluate.text", "nowhere"], "evaluate.text: nowhere: no such file or folder"),
        (["evaluate", str(saved), "--evaluate.seed", "-1"], "evaluate.seed is -1; it cannot be negative"),
        (["info", str(saved.parent)], f"it has no config.json. The models in it are {saved}."),
        (["report", str(saved)], "not the folder of a run"),
        (["report", "a", "b", "c"], "runs has 3; name one run, or two to compare"),
        (["report", "a", "--out", "x.html"], "out is the page of two runs compared; name both runs"),
        (["report", "a", "b", "--figures", "x"], "figures are those of one run's report; name one run"),
        (["report", "a", "b", "--out", "x"], "out is x; give a file that ends in .html"),
        (["evaluate", str(saved), "--evaluate.samples", "0"], "samples is 0; it must be at least 1"),
        (["evaluate", str(saved), "--evaluate.max-new-tokens", "0"], "max_new_tokens is 0; it must be at least 1"),
        (["evaluate", str(saved), "--out", __file__], "no folder can be made there"),
        (["sample", str(saved), "--prompt", "x", "--n", "0"], "n is 0; ask for at least 1 completion"),
    ):
        assert cli.main(arguments) == 2
        printed = capsys.readouterr().err
        assert sentence in printed
        assert printed.count("\n") == 1


def test_the_ledger_of_a_run_is_printed_and_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", problems=20, samples=2, steps=5)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert cli.main(["ledger", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "tested in pairs" in printed
    assert max(map(len, printed.splitlines())) > 80  # in a pipe no line is wrapped at a width that nothing has
    assert all(stage in printed for stage in ("base", "SFT", "GRPO", "edited"))
    assert cli.main(["ledger", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"].keys() >= {"base", "sft", "grpo", "edited"}
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_report_of_a_run_is_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", problems=20, samples=2, steps=5)
    assert cli.main(["report", str(folder)]) == 0
    assert f"The report: {folder / 'report.html'}" in capsys.readouterr().out
    assert (folder / "report.html").is_file()
    assert json.loads((folder / "summary.json").read_text())["stages"]


def test_two_runs_are_compared_in_a_table_and_on_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, page = make_run(tmp_path / "run", problems=12, steps=12), tmp_path / "pair.html"
    assert cli.main(["report", str(folder), str(folder), "--out", str(page)]) == 0
    shown = capsys.readouterr().out
    assert f"A: {folder}, 5 min 0 s in all" in shown and f"The comparison: {page}" in shown
    assert re.search(r"^problems pass@1 .*≈ inconclusive$", shown, re.MULTILINE)
    assert not (folder / "report.html").exists()
    text = page.read_text(encoding="utf-8")
    assert "<h1>Two runs: A and B</h1>" in text and "<script" not in text and "problems pass@1" in text
