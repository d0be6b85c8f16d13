"""The verbs that run stages: run, and pretrain, sft, grpo, edit alone, a few steps each on a two-layer model."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanogpt_edit import cli
from nanogpt_edit.checkpoint.checkpoint import fingerprint, load, save
from nanogpt_edit.commands.arguments import Edit
from nanogpt_edit.common import terminal
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_jsonl
from nanogpt_edit.common.settings import read_settings
from nanogpt_edit.data.text import TokenStream
from nanogpt_edit.editing.patch_files import load_patch
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import EMBEDDED, LineageEntry
from nanogpt_edit.pipeline import pipeline, stages
from nanogpt_edit.pipeline.recipe import Recipe, load_recipe


@pytest.fixture
def base(speaking_gpt: GPT, tmp_path: Path) -> str:
    save(speaking_gpt, tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def sums(tmp_path: Path) -> list[str]:
    """The flags that name three hundred problems of one file, on a CPU."""
    lines = [{"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(300)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["--problems.path", str(path), "--device", "cpu"]


def test_the_verbs_that_train_train_in_the_precision_that_is_asked_for(
    base: str, sums: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {}
    for precision in ("auto", "float32", "bfloat16"):
        out = tmp_path / precision
        command = ["sft", base, "--out", str(out), *sums, "--sft.steps", "2", "--sft.batch-size", "4"]
        assert cli.main([*command, "--precision", precision]) == 0
        losses[precision] = [line["loss"] for line in read_jsonl(out / "logs" / "sft.jsonl")]
    assert losses["auto"] == losses["float32"] != losses["bfloat16"]
    assert cli.main(["edit", base, "facts50", "--out", str(tmp_path / "e"), "--precision", "bfloat16"]) == 2
    assert "--edit.precision" in capsys.readouterr().err


def test_sft_trains_logs_saves_and_is_not_done_twice(
    base: str, sums: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sft", base, "--out", str(tmp_path / "out"), *sums, "--sft.steps", "3", "--sft.batch-size", "4"]
    assert cli.main(command) == 0
    assert f"The model: {tmp_path / 'out' / 'sft'}" in capsys.readouterr().out
    assert [line["step"] for line in read_jsonl(tmp_path / "out" / "logs" / "sft.jsonl")] == [0, 1, 2]
    trained = load(tmp_path / "out" / "sft")
    assert fingerprint(trained) != fingerprint(load(base))
    assert str(trained.lineage[-1]).startswith("SFT for 3 steps")

    # The same command again leaves the model alone; another setting is refused, by its name.
    changed = (tmp_path / "out" / "sft" / "model.safetensors").stat().st_mtime_ns
    assert cli.main(command) == 0
    assert (tmp_path / "out" / "sft" / "model.safetensors").stat().st_mtime_ns == changed
    assert cli.main([*command, "--sft.learning-rate", "0.5"]) == 2
    assert "with other settings (sft.learning_rate)" in capsys.readouterr().err

    # Settings of a version that had others.
    settings = tmp_path / "out" / "sft.toml"
    settings.write_text(f"haste = 3\n{settings.read_text()}")
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "settings that cannot be read here, perhaps of another version; choose another --out" in said
    assert 'unknown field "haste"' in said


def test_sft_learns_from_conversations_in_the_template_that_sample_asks_with(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talks = [{"prompt": f"{n % 12} + 1?", "completion": "yes"} for n in range(40)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    out, chats = tmp_path / "out", str(tmp_path / "talk.jsonl")
    learning = ["--sft.steps", "60", "--sft.learning-rate", "1e-2", "--sft.batch-size", "8", "--device", "cpu"]
    assert cli.main(["sft", base, "--out", str(out), "--sft.chats", chats, *learning]) == 0
    assert "word problems" not in capsys.readouterr().err  # of which nothing is learned
    trained = load(out / "sft")
    assert [str(entry) for entry in trained.lineage[-2:]] == [
        "chat template set: a name, a colon and the text",
        f"SFT for 60 steps on the conversations of {chats}",
    ]
    capsys.readouterr()
    asked = ["--prompt", "3 + 1?", "--temperature", "0", "--device", "cpu", "--max-new-tokens", "12"]
    assert cli.main(["sample", str(out / "sft"), "--chat", *asked]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == " yes"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--sft.chats", "no-such.jsonl"], "sft.chats"),
        (["--sft.chat-template", "plain"], "no conversations are given"),
        (["--sft.chats", "talk.jsonl", "--problems.path", "sums.jsonl"], "SFT learns the conversations of talk.jsonl"),
        (["--sft.frozen", "blocks.9"], "sft: frozen names 'blocks.9'"),
        (["--sft.lora.rank", "999999999999"], "sft: lora.rank is 999,999,999,999, but no matrix"),
    ],
)
def test_what_sft_cannot_have_is_one_line(
    flags: list[str], sentence: str, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sft", base, "--out", str(tmp_path / "out"), "--device", "cpu", *flags]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out" / "sft").exists()


def test_sft_keeps_the_best_weights_the_last_or_both(base: str, sums: list[str], tmp_path: Path) -> None:
    rising = ["--sft.steps", "3", "--sft.batch-size", "4", "--sft.learning-rate", "0.3", "--sft.evaluate-every", "1"]
    for keep in ("best", "last", "both"):
        command = ["sft", base, "--out", str(tmp_path / keep), *sums, *rising, "--sft.keep", keep]
        assert cli.main(command) == 0
    best, last = (fingerprint(load(tmp_path / keep / "sft")) for keep in ("best", "last"))
    assert best != last
    assert fingerprint(load(tmp_path / "both" / "sft")) == best
    assert fingerprint(load(tmp_path / "both" / "sft-last")) == last
    assert not (tmp_path / "best" / "sft-last").exists()


def test_an_attempt_that_failed_before_training_does_not_hold_the_folder(
    base: str, sums: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(terminal.console, "print", lambda message, **_: said.append(message))
    command = ["sft", base, "--out", str(tmp_path / "out"), *sums, "--sft.steps", "1", "--sft.batch-size", "2"]
    assert cli.main([*command, "--problems.answer-field", "solution"]) == 2
    assert "Name the right one with --problems.answer-field" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert not [line for line in said if "done before" in line or "edits to come" in line]
    assert cli.main(command) == 0
    assert f"sft: done before; to do it again, choose another --out, or delete {tmp_path / 'out' / 'sft'}." in said


SMALL_GRPO = ["--grpo.steps", "2", "--grpo.problems-per-step", "2", "--grpo.group-size", "2"]
SMALL_GRPO += ["--grpo.max-new-tokens", "6", "--grpo.evaluate-problems", "2", "--grpo.evaluate-samples", "1"]


def test_grpo_trains_from_any_model(base: str, sums: list[str], tmp_path: Path) -> None:
    assert cli.main(["grpo", base, "--out", str(tmp_path / "out"), *sums, *SMALL_GRPO]) == 0
    assert [line["step"] for line in read_jsonl(tmp_path / "out" / "logs" / "grpo.jsonl")] == [0, 1]
    assert str(load(tmp_path / "out" / "grpo").lineage[-1]).startswith("GRPO for 2 steps")


def test_grpo_takes_rewards_by_name_and_by_function_in_this_folder(
    base: str, sums: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rewards_of_mine.py").write_text("def short(problem, text): return -len(text) / 100\n")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", os.getcwd())])
    monkeypatch.chdir(tmp_path)
    command = ["grpo", base, "--out", "out", *sums, *SMALL_GRPO, "--grpo.rewards"]
    assert cli.main([*command, "format=0.1", "rewards_of_mine:short=1"]) == 0
    line = read_jsonl(tmp_path / "out" / "logs" / "grpo.jsonl")[0]
    assert line["reward"] == pytest.approx(
        0.1 * float(str(line["reward_format"])) + float(str(line["reward_rewards_of_mine:short"]))
    )
    capsys.readouterr()
    for wrong, sentence in {
        "lenght=1": 'there is no reward "lenght"; did you mean "length"?',
        "format": "'format' is not a name and a weight, as in accuracy=1",
    }.items():
        assert cli.main([*command, wrong, "--out", "other"]) == 2
        assert sentence in capsys.readouterr().err


def test_a_model_without_a_tokenizer_is_refused(
    speaking_gpt: GPT, sums: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speaking_gpt.tokenizer = None
    save(speaking_gpt, tmp_path / "mute")
    for verb in ("sft", "grpo"):
        assert cli.main([verb, str(tmp_path / "mute"), "--out", str(tmp_path / verb), *sums]) == 2
        assert "carries no tokenizer" in capsys.readouterr().err


def test_text_of_the_world_is_replayed_only_to_models_that_learned_it(
    base: str, sums: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def sft(*_: object, replay: object, **__: object) -> None:
        seen.append(replay)
        raise UserError("enough")

    monkeypatch.setattr(stages, "sft", sft)
    save(load(base), tmp_path / "here", lineage_note=LineageEntry("pretrained", "as ever", text=EMBEDDED))
    for model, name in ((base, "a"), (str(tmp_path / "here"), "b")):
        assert cli.main(["sft", model, "--out", str(tmp_path / name), *sums, "--sft.replay", "0.5"]) == 2
    assert seen[0] is None
    assert isinstance(seen[1], TokenStream)


def test_rows_longer_than_the_model_reads_are_refused(
    base: str, sums: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--model.n-layer", "1", "--model.n-embd", "16", "--model.n-head", "2", "--model.block-size", "32"]
    assert cli.main(["pretrain", "--out", str(tmp_path / "new"), *sums, *small]) == 2
    assert "pretrain.context_tokens is 128, more than the 32 tokens" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("the tree is green. " * 1000)
    replay = ["--sft.replay", "0.5", "--sft.replay-source", str(tmp_path / "notes.txt"), "--sft.replay-tokens", "4000"]
    assert cli.main(["sft", base, "--out", str(tmp_path / "out"), *sums, *replay]) == 2
    assert "sft.replay_tokens is 4000, more than the" in capsys.readouterr().err


def test_pretrain_makes_a_model_of_the_sizes_asked_for(sums: list[str], tmp_path: Path) -> None:
    sizes = ["--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "16", "--model.vocab-size", "300"]
    command = ["pretrain", "--out", str(tmp_path / "out"), *sums, *sizes, "--pretrain.steps", "2"]
    assert cli.main([*command, "--pretrain.batch-size", "2", "--pretrain.context-tokens", "16"]) == 0
    config = load(tmp_path / "out" / "base").config
    assert (config.n_layer, config.n_head, config.n_embd) == (2, 2, 16)


def test_edit_leaves_the_model_the_patch_and_the_scores(
    base: str, sums: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fact = {"prompt": "The capital of France is", "subject": "France", "target_new": "Rome", "target_true": "Paris"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(fact) + "\n")
    settings = ["--edit.steps", "3", "--edit.n-prefixes", "0", "--edit.refine-steps", "0"]
    settings += ["--edit.covariance-tokens", "4096"]
    out = tmp_path / "out"
    assert cli.main(["edit", base, str(tmp_path / "mine.jsonl"), "--out", str(out), *sums, *settings]) == 0
    assert read_settings(Edit, out / "edited.toml").threads == torch.get_num_threads()
    patch = load_patch(out / "edits" / "mine.safetensors")
    assert [found.target_new for found in patch.facts] == ["Rome"]
    (score,) = read_jsonl(out / "edits" / "mine.jsonl")
    assert score["target_new"] == "Rome"
    assert patch.scores == (score,)
    assert cli.main(["patch", "show", str(out / "edits" / "mine.safetensors")]) == 0
    assert f"Paris → Rome  (rank {score['rank_before']} → {score['rank_after']})" in capsys.readouterr().out
    edited = load(out / "edited")
    patch.revert(edited)
    assert fingerprint(edited) == fingerprint(load(base))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--problems.path", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--sft.steps", "-1"], "steps is -1"),
        (["--sft.stepz", "1"], "did you mean --sft.steps?"),
        (["--threads", "0"], "threads is 0"),
        (["--threads", "none", "--seed", "x"], "error parsing --seed: 'x' is not a whole number."),
        (["--sft.learning-rate", "low"], "error parsing --sft.learning-rate: 'low' is not a number."),
        (["--out", __file__], "test_stages.py: no folder can be made there (file exists)"),
        (["--sft.replay-source", "notes.txt"], "but replay is 0 and nothing of it would be mixed in"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_model(
    base: str, sums: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], sentence: str
) -> None:
    assert cli.main(["sft", base, "--out", str(tmp_path / "out"), *sums, *change]) == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out" / "sft").exists()


def test_an_edit_of_another_model_speaks_of_no_embedded_world_and_bad_data_writes_no_settings(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(terminal.console, "print", lambda message, **_: told.append(str(message)))
    fact = {"prompt": "The capital of France is", "subject": "France", "target_new": "Rome", "target_true": "Paris"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(fact) + "\n")
    settings = ["--edit.method", "ft", "--edit.steps", "1", "--device", "cpu"]
    assert cli.main(["edit", base, str(tmp_path / "mine.jsonl"), "--out", str(tmp_path / "out"), *settings]) == 0
    assert told and not any("embedded world" in line for line in told)

    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    assert cli.main(["edit", base, "nowhere.jsonl", "--out", str(kept), *settings]) == 2
    for verb in ("sft", "grpo"):
        wrong = ["--problems.path", "nowhere.jsonl", "--device", "cpu"]
        assert cli.main([verb, base, "--out", str(kept), *wrong]) == 2
    assert [path.name for path in kept.iterdir() if path.name != ".lock"] == ["mine.txt"]


def test_help_of_each_stage_explains_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, flag in (("pretrain", "--pretrain.batch-size"), ("sft", "--sft.replay"), ("grpo", "--grpo.clip-high")):
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        printed = capsys.readouterr().out
        assert flag in printed
        assert "--out PATH" in printed
        assert ("--pretrain.steps" in printed) == (verb == "pretrain")  # the others read its text only


def test_trace_prints_its_tables_and_draws_one(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--prompt", "The capital of France is", "--subject", "France", "--device", "cpu", "--trace.draws", "2"]
    assert cli.main(["trace", base, *asked, "--out", str(tmp_path / "trace.svg"), "--site", "mlp_out"]) == 0
    assert "mlp_out, layer" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "trace.svg").read_text()
    for wrong, sentence in (
        (["--subject", "Spain"], 'subject "Spain" is not in the prompt'),
        (["--subject", ""], "the prompt and the subject cannot be empty"),
        (["--facts", "facts50"], "--facts brings its own prompts"),
        (["--sweep", "sweep.jsonl"], "--sweep is drawn over the trace of facts"),
        (["--trace.noise", "-1"], "trace.noise is -1.0; it cannot be negative"),
        (["--out", str(tmp_path / "trace.txt")], "trace.txt: pictures are written as .svg or .png"),
        (["--out", str(tmp_path / "trace.svg" / "one.svg")], "trace.svg: no folder can be made there (file exists)"),
    ):
        assert cli.main(["trace", base, *asked, *wrong]) == 2
        captured = capsys.readouterr()
        assert sentence in captured.err
        assert not captured.out  # said before anything is traced


def test_run_hands_the_overridden_recipe_and_the_folder_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(recipe: Recipe, out: Path, *, track: str | None) -> int:
        seen.append((recipe, out, track))
        return 3

    monkeypatch.setattr(pipeline, "run", run)
    assert cli.main(["run", "tiny", "--problems.path", "../data/gsm8k", "--out", "runs/gsm8k"]) == 3
    assert cli.main(["run", "tiny", "--track", "wandb"]) == 3
    tiny = load_recipe("tiny")
    others = replace(tiny, problems=replace(tiny.problems, path="../data/gsm8k"), expect={})  # they are about its own
    assert seen[0] == (others, Path("runs/gsm8k"), None)
    assert seen[1] == (tiny, Path("runs/tiny"), "wandb")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name the recipe first, as in: nanogpt-edit run tiny"),
        (["--out", "x", "tiny"], "name the recipe first"),
        (["tinny"], 'there is no recipe "tinny"; did you mean "tiny"?'),
        (["tiny", "--grpo.stepz", "3"], "unrecognized options: --grpo.stepz, 3; did you mean --grpo.steps?"),
        (["tiny", "--sft.replay", "2"], "sft.replay is 2.0"),
        (["tiny", "--model.n-head=0"], "model.n_head is 0; it must be at least 1"),
        (["tiny", "--pretrain.batch-size", "0"], "pretrain.batch_size is 0; it must be at least 1"),
        (["tiny", "--seed", "-1"], "seed is -1; it cannot be negative"),
    ],
)
def test_a_bad_run_command_is_one_line(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"nanogpt-edit: {sentence}")
    assert printed.count("\n") == 1


def test_help_of_run_needs_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: nanogpt-edit run tiny" in printed
    assert "(default: runs/tiny)" in printed
