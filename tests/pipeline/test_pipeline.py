"""The whole pipeline on a model of a few thousand weights: every stage runs, is skipped when done, and is resumed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from micro import MICRO

import nanogpt_edit as ne
from nanogpt_edit import cli
from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common import terminal
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_json, write_json, write_jsonl
from nanogpt_edit.common.reasoning import REASONING_TEMPLATE
from nanogpt_edit.data.text import TokenStream
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.patch_files import load_patch
from nanogpt_edit.evaluation.records import read_told
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline import fitted, pipeline, stages
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.new_model import new_model
from nanogpt_edit.pipeline.recipe import ModelConfig, Recipe, load_recipe, save_recipe
from nanogpt_edit.pipeline.records import timed
from nanogpt_edit.report.ledger import make_ledger
from nanogpt_edit.report.read import read_run

HERE = Path(__file__).parents[1]
STAGES = ("base", "sft", "grpo", "edited")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "micro"
    assert pipeline.run(MICRO, out) == 0
    return out


def fingerprints(out: Path) -> dict[str, str]:
    return {stage: checkpoint.fingerprint(checkpoint.load(out / stage)) for stage in STAGES}


def test_a_run_leaves_the_files_a_person_expects(finished: Path) -> None:
    for name in ("recipe.toml", "report.html", "report.md", "summary.json", "environment.json", "timing.json"):
        assert (finished / name).is_file(), name
    for stage in STAGES:
        assert (finished / "eval" / f"{stage}.json").is_file()
        assert read_told(finished / "eval" / f"{stage}_tokens.jsonl")
    texts = {read_json(finished / "eval" / f"{stage}.json")["text_sha256"] for stage in STAGES}
    assert len(texts) == 1 and texts != {None}  # every checkpoint was measured on one text
    assert read_json(finished / "timing.json")["peak_bytes"].keys() <= set(timed(STAGES))
    for name in ("facts50.safetensors", "facts50.jsonl", "facts50.json", "trace.json"):
        assert (finished / "edits" / name).is_file(), name
    summary = read_json(finished / "summary.json")
    assert set(STAGES) == set(summary["stages"])
    assert summary["edit"]["n"] == 50
    assert not list((finished / "state").rglob("*.safetensors"))  # saved states are gone once a stage is done


def test_the_run_the_verb_and_python_make_the_same_patch(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings and the spared text are those of the run, and so is every bit of the patch."""
    by_run = load_patch(finished / "edits" / "facts50.safetensors")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal.console, "print", lambda message, **_: said.append(str(message)))
        assert cli.main(["edit", str(finished / "grpo"), "facts50", "--out", str(tmp_path / "mine")]) == 0
        by_python = ne.edit(ne.load(finished / "grpo"), "facts50", method="memit")
    by_verb = load_patch(tmp_path / "mine" / "edits" / "facts50.safetensors")
    for other in (by_verb, by_python):
        assert other.config == by_run.config
        assert other.made_of() == by_run.made_of()
    taken = [line for line in said if line.startswith("Edit: settings and spared text as in")]
    assert taken == [f"Edit: settings and spared text as in {finished / 'recipe.toml'}, except what is given here."] * 2
    # A few steps teach so small a model nothing: that is the last thing said.
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("Fell short: only ")
    assert "Likely reason: " in last
    assert "--recipe FILE takes them." in last


def test_an_edit_takes_the_settings_of_a_recipe_or_a_sweep(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text('[edit]\nmethod = "ft"\nsteps = 1\nlayers = [1]\n')
    fact = {"prompt": "The capital of Egypt is", "subject": "Egypt", "target_new": "Giza", "target_true": "Cairo"}
    write_jsonl(tmp_path / "one.jsonl", [fact])
    base, facts = str(finished / "base"), str(tmp_path / "one.jsonl")

    def settings(out: str, *flags: str) -> EditConfig:
        assert cli.main(["edit", base, facts, "--out", str(tmp_path / out), *flags]) == 0
        return load_patch(tmp_path / out / "edits" / "one.safetensors").config

    sweep = ["--recipe", str(tmp_path / "sweep.toml")]
    assert settings("a", *sweep) == EditConfig(method="ft", steps=1, layers=(1,))
    assert settings("b", *sweep, "--edit.steps", "2") == EditConfig(method="ft", steps=2, layers=(1,))
    packaged = replace(load_recipe("tiny").edit, method="ft", steps=1)
    assert settings("c", "--recipe", "tiny", "--edit.method", "ft", "--edit.steps", "1") == packaged
    shutil.copytree(finished / "base", tmp_path / "elsewhere" / "base")
    base = str(tmp_path / "elsewhere" / "base")
    chosen = settings("d", "--edit.method", "ft", "--edit.steps", "1")  # no recipe stands beside it
    assert (chosen.preset, chosen.method, chosen.steps) == ("auto", "ft", 1)
    found = settings("e", "--edit.layers", "0", "1", "--edit.covariance-weight", "300", "--edit.steps", "1")
    assert (found.layers, found.covariance_weight) == ((0, 1), 300)  # the defaults, but given


def test_an_edit_says_which_recipe_it_cannot_find(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, sentence in (
        ("tinny", 'no recipe "tinny"; did you mean "tiny"?'),
        (str(tmp_path / "no.toml"), "no.toml: no such file"),
        (str(tmp_path), "a folder, where a file was expected"),
    ):
        command = ["edit", str(finished / "base"), "facts50", "--out", str(tmp_path / "out"), "--recipe", name]
        assert cli.main(command) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_the_defaults_of_an_edit_are_those_of_the_recipe_tiny() -> None:
    assert load_recipe("tiny").edit == EditConfig()


def test_every_model_directory_gives_transformers_the_same_logits(finished: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for stage in STAGES:
        ours = checkpoint.load(finished / stage)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(finished / stage).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(finished / stage)
        text = "The capital of Egypt is<think>2 + 3 = 5</think><answer>5</answer>"
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert ids[0].tolist() == ours.tokenizer.encode(text)
        with torch.no_grad():
            torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_what_sft_teaches_is_the_chat_template_from_then_on(finished: Path) -> None:
    said = "chat template set: the bare question, then <think>"
    for stage in STAGES:
        model, taught = checkpoint.load(finished / stage), stage != "base"
        assert model.tokenizer is not None
        assert model.tokenizer.chat_template == (REASONING_TEMPLATE if taught else None)
        assert [str(each) for each in model.lineage if each.kind == "template"] == [said] * taught
        assert ("the one it was trained on" in (finished / stage / "README.md").read_text()) == taught


def test_a_second_call_does_nothing_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    assert pipeline.run(MICRO, finished) == 0
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}


def test_what_is_measured_again_is_compared_again(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "eval" / "grpo.json").unlink()
    for name in ("compare_sft-base", "compare_grpo-sft", "compare_edited-grpo"):
        write_json(run / "eval" / f"{name}.json", {"metrics": {}})
    assert pipeline.run(MICRO, run) == 0
    for name in ("compare_grpo-sft", "compare_edited-grpo"):
        assert read_json(run / "eval" / f"{name}.json") == read_json(finished / "eval" / f"{name}.json")
    assert read_json(run / "eval" / "compare_sft-base.json") == {"metrics": {}}


def test_an_expectation_that_fails_gives_exit_status_3(finished: Path) -> None:
    assert pipeline.run(replace(MICRO, expect={"stages.base.problems.well_formed": ">= 0.99"}), finished) == 3


def test_another_recipe_in_the_same_folder_is_refused_by_name(finished: Path) -> None:
    with pytest.raises(UserError, match=r"sft\.steps"):
        pipeline.run(replace(MICRO, sft=replace(MICRO.sft, steps=7)), finished)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(finished: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "micro.toml", tmp_path / "run"
    save_recipe(MICRO, recipe)
    command = [sys.executable, "-m", "nanogpt_edit", "run", str(recipe), "--out", str(out)]
    path = os.pathsep.join([str(HERE.parent), str(HERE)])  # where the package is, and the reward
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for stage in ("pretrain", "sft", "grpo"):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        log, deadline = out / "logs" / f"{stage}.jsonl", time.monotonic() + 900
        while not (log.exists() and len(log.read_text().splitlines()) >= 3):
            assert time.monotonic() < deadline, "the stage did not get going"
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert fingerprints(out) == fingerprints(finished)


@pytest.mark.slow
def test_a_run_makes_the_stages_that_its_recipe_names_and_speaks_of_no_others(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_recipe(replace(MICRO, expect={"stages.base.facts.recall": ">= 0 (value)"}), tmp_path / "micro.toml")
    run, source = tmp_path / "run", str(finished / "base")
    command = ["run", str(tmp_path / "micro.toml"), "--stages", "base", "edited", "--model.source", source]
    assert cli.main([*command, "--out", str(run)]) == 0
    assert {path.parent.name for path in run.glob("*/config.json")} == {"base", "edited"}
    summary = read_json(run / "summary.json")
    assert set(summary["stages"]) == {"base", "edited"}
    assert set(summary["comparisons"]) == {"edited-base"}
    assert not {"sft", "grpo", "evaluate_sft", "evaluate_grpo"} & set(summary["seconds"])
    page = (run / "report.html").read_text().partition("</style>")[2]
    for text in ((run / "report.md").read_text(), page, capsys.readouterr().out):
        assert not re.search("SFT|GRPO|sft|grpo|reinforce|While learning|does not hold", text)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    assert cli.main([*command, "--out", str(run)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    assert cli.main(["report", str(run)]) == 0
    assert cli.main(["compare", str(run / "base"), str(run / "edited")]) == 0
    assert cli.main(["evaluate", str(run / "edited"), "--evaluate.problems", "2"]) == 0
    assert cli.main(["doctor", *command[1:], "--out", str(run)]) == 0
    with pytest.raises(UserError, match="holds a run with other settings .*stages"):
        pipeline.run(replace(load_recipe(run / "recipe.toml"), stages=("base", "sft", "edited")), run)


@pytest.mark.slow
def test_an_edit_may_come_before_the_training_that_it_is_to_survive(finished: Path, tmp_path: Path) -> None:
    written = [f"blocks.{layer}.mlp.down" for layer in MICRO.edit.edited_layers]
    recipe = replace(
        MICRO,
        stages=("base", "edited", "sft"),
        model=ModelConfig(source=str(finished / "base")),
        sft=replace(MICRO.sft, frozen=tuple(written)),
        expect={},
    )
    run = tmp_path / "run"
    assert pipeline.run(recipe, run) == 0
    edited, taught = (dict(checkpoint.load(run / name).named_parameters()) for name in ("edited", "sft"))
    same = {name for name, weight in taught.items() if torch.equal(weight, edited[name])}
    assert {f"{name}.weight" for name in written} <= same < set(taught)
    summary = read_json(run / "summary.json")
    assert list(summary["stages"]) == ["base", "edited", "sft"]
    assert set(summary["comparisons"]) == {"edited-base", "sft-edited"}
    ledger = make_ledger(read_run(run))
    new_answers = ledger.columns.index(("facts", "edited"))
    assert [row.cells[new_answers] is not None for row in ledger.rows] == [True, True, True]
    neighbours = ledger.columns.index(("edit", "neighbourhood"))
    assert [row.cells[neighbours] is not None for row in ledger.rows] == [True, True, False]
    assert re.search(r"\| base: .* \| edited: ", (run / "report.md").read_text())


def test_a_run_without_an_edit_reads_no_facts_to_edit(finished: Path, tmp_path: Path) -> None:
    few = replace(MICRO.evaluate, problems=0, phrasings=1)
    source = ModelConfig(source=str(finished / "base"))
    taken = replace(MICRO, stages=("base",), facts="no/such.jsonl", model=source, evaluate=few)
    assert pipeline.run(taken, tmp_path / "run") == 0
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary["edit"] is None
    assert set(summary["stages"]["base"]) == {"arithmetic", "facts", "probes", "perplexity"}
    assert set(summary["stages"]["base"]["facts"]) == {"recall"}
    recalls = (tmp_path / "run" / "eval" / "base_facts.jsonl").read_text().splitlines()
    assert len(recalls) == summary["stages"]["base"]["facts"]["recall"]["n"]  # one prompt of each
    assert not (tmp_path / "run" / "edits").exists()
    assert not re.search("Edits|edited facts|Causal", (tmp_path / "run" / "report.md").read_text())


FACT = {"prompt": "The capital of Egypt is", "subject": "Peru", "target_new": "Lima", "target_true": "Cairo"}


@pytest.mark.parametrize(
    ("stage", "field", "value", "sentence"),
    [
        ("pretrain", "text", "no/such.txt", "pretrain.text: no/such.txt: no such file"),
        ("grpo", "rewards", {"lenght": 1.0}, 'did you mean "length"'),
        ("grpo", "max_new_tokens", 159, "grpo.max_new_tokens: None of 60 questions leaves room"),
        ("sft", "replay_source", "no/such.jsonl", "sft.replay_source: no/such.jsonl: no such file"),
        ("sft", "replay_tokens", 161, "sft.replay_tokens is 161, more than the 160 tokens"),
        ("edit", "layers", (1, 2), r"edit: layers \[1, 2\] are not all in the model, which has layers 0 to 1"),
        ("", "expect", {"edit.success": "all"}, "'all' is not a bound"),
        ("", "facts", "mine.jsonl", 'edit: .*"Peru"'),
    ],
)
def test_what_a_late_stage_would_stumble_over_is_said_first(
    tmp_path: Path, stage: str, field: str, value: object, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("mine.jsonl"), [FACT])
    change = {stage: replace(getattr(MICRO, stage), **{field: value})} if stage else {field: value}
    with pytest.raises(UserError, match=sentence):
        pipeline.run(replace(MICRO, **change), tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run" / "base").exists()
    assert not (tmp_path / "run" / "state").exists()


def test_the_worlds_own_seed_draws_its_problems() -> None:
    def questions(seed: int, own: int | None) -> list[str]:
        recipe = replace(MICRO, seed=seed, world=replace(MICRO.world, seed=own))
        return [problem.question for problem in RunInputs(recipe).problems.train]

    assert questions(1, 2) == questions(0, 2) == questions(2, None)
    assert questions(1, None) != questions(2, None)
    assert questions(0, None) == questions(0, 0)


def test_a_second_run_in_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        code = "from nanogpt_edit.pipeline.folder import RunFolder, Path\n"
        code += f"with RunFolder(Path({str(folder.path)!r})).locked(): pass"
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert second.returncode != 0
    assert str(os.getpid()) in second.stderr


def test_sft_replays_the_base_text_other_text_or_a_second_set_of_problems(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The sea was calm that day, and the sky was grey. " * 20)
    (tmp_path / "sums.jsonl").write_text('{"question": "What is 2 + 3?", "answer": "2 + 3 = 5\\n#### 5"}\n')

    def replay(**fields: object) -> object:
        recipe = replace(MICRO, sft=replace(MICRO.sft, **fields))  # type: ignore[arg-type]
        return fitted.replay(RunInputs(recipe), model)

    model = new_model(RunInputs(MICRO), torch.device("cpu"))
    tokenizer = model.tokenizer
    assert tokenizer is not None
    base, text = replay(), replay(replay_source=str(tmp_path / "notes.txt"))
    assert isinstance(base, TokenStream) and isinstance(text, TokenStream)
    assert "capital" in tokenizer.decode(base.token_ids.tolist())
    assert tokenizer.decode(text.token_ids[:20].tolist()).startswith("The sea was calm")
    (sample,) = replay(replay_source=str(tmp_path / "sums.jsonl"))  # type: ignore[misc]
    assert tokenizer.decode(sample.token_ids).endswith("</think><answer>5</answer>")
    assert replay(replay=0.0) is None

    # A model from elsewhere has not learned the world: nothing, or the text that is named.
    elsewhere = replace(MICRO, model=ModelConfig(source="gpt2"))
    for text_of_recipe in (None, str(tmp_path / "notes.txt")):
        recipe = replace(elsewhere, pretrain=replace(MICRO.pretrain, text=text_of_recipe))
        found = fitted.replay(RunInputs(recipe), model)
        assert (found is None) == (text_of_recipe is None)
    assert isinstance(found, TokenStream)
    assert "capital" not in tokenizer.decode(found.token_ids.tolist())


def test_a_processor_that_multiplies_bfloat16_is_said_once_it_would_pay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, recipe = GPT(tiny_config("gpt2"), seed=0), Recipe()

    def said(recipe: Recipe, *, unit: bool, parameters: int) -> bool:
        caplog.clear()
        monkeypatch.setattr(stages, "multiplies_bfloat16", lambda device: unit)
        monkeypatch.setattr(stages, "LARGE_MODEL", parameters)
        with caplog.at_level("INFO", logger="nanogpt_edit"):
            stages.say_what_is_faster(model, recipe)
        return "--precision bfloat16" in caplog.text

    amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)
    assert stages.multiplies_bfloat16(torch.device("cpu")) == amx()
    assert not stages.multiplies_bfloat16(torch.device("cuda"))
    assert said(recipe, unit=True, parameters=1)
    assert not said(recipe, unit=False, parameters=1)
    assert not said(recipe, unit=True, parameters=10**9)
    assert not said(replace(recipe, precision="float32"), unit=True, parameters=1)
