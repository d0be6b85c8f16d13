"""Two runs in pairs: what was asked alike is compared as `compare` does it, what was not is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from report_run import make_run

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.evaluation.records import Comparison
from nanogpt_edit.pipeline.compare_runs import compare_runs
from nanogpt_edit.report.page import render_pair
from nanogpt_edit.report.pair import Compared, RunPair


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "a", problems=12, steps=12)


@pytest.fixture
def other(one: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(one, tmp_path / "b"))


def edit_lines(path: Path, line: int, **changes: object) -> None:
    lines = path.read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **changes})
    path.write_text("\n".join(lines) + "\n")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rows(pair: RunPair, title: str) -> dict[str, Compared]:
    (part,) = (part for part in pair.parts if part.title == title)
    return {row.label: row for row in part.rows}


def test_a_run_beside_itself_differs_in_nothing(one: Path) -> None:
    pair = compare_runs(one, one)
    assert [part.title for part in pair.parts] == ["base", "SFT", "GRPO", "edited", "Edits"]
    assert {row.change.delta for part in pair.parts for row in part.rows} == {0.0}
    assert {row.change.verdict for part in pair.parts for row in part.rows} == {"inconclusive"}
    assert pair.set_apart == ()
    assert [note[:40] for note in pair.notes] == ["Edits: KL on unrelated text is kept as a"]


def test_a_checkpoint_is_compared_as_its_own_run_compares_two(one: Path, other: Path) -> None:
    """B's GRPO is A's SFT, so B less A is what A's own comparison of the two found, turned around."""
    for name in (".jsonl", ".json", "_facts.jsonl", "_text.jsonl"):
        shutil.copy(one / "eval" / f"sft{name}", other / "eval" / f"grpo{name}")
    edit_json(other / "eval" / "grpo.json", stage="grpo")
    found = rows(compare_runs(one, other), "GRPO")
    own = Comparison.load(one / "eval" / "compare_grpo-sft.json").metrics
    for label, name in (
        ("problems pass@1", "pass_at_1"),
        ("problems well-formed", "well_formed"),
        ("arithmetic pass@1", "arithmetic_pass_at_1"),
        ("true facts recalled", "facts_recall"),
        ("held-out text, nats per token", "perplexity_nats_per_token"),
    ):
        change = found[label].change
        assert (change.delta, change.n) == (pytest.approx(-own[name].delta), own[name].n), label
        turned = {"better": "worse", "worse": "better"}
        assert change.verdict == turned.get(own[name].verdict, own[name].verdict)
    measured = json.loads((one / "eval" / "sft.json").read_text())["skills"]["problems"]["pass_at_1"]["value"]
    assert found["problems pass@1"].second.value == measured


def test_what_was_not_asked_alike_is_not_compared_and_said(one: Path, other: Path) -> None:
    edit_lines(other / "eval" / "grpo.jsonl", 0, prompt="Another question under the same name?")
    edit_lines(other / "eval" / "grpo_facts.jsonl", 0, target="Atlantis")
    edit_json(other / "eval" / "grpo.json", text_sha256="0" * 64)
    edit_json(other / "eval" / "sft.json", text_sha256=None)
    pair = compare_runs(one, other)
    labels = rows(pair, "GRPO").keys()
    assert "arithmetic pass@1" in labels
    assert not {"problems pass@1", "true facts recalled", "held-out text, nats per token"} & labels
    notes = "\n".join(pair.notes)
    assert "GRPO: the two evaluations used different problems" in notes
    assert "GRPO: true facts recalled: not of the same facts in A and B, so not compared." in notes
    assert "GRPO: held-out text: not the same tokens in A and B, so not compared." in notes
    assert "SFT: held-out text: an evaluation of an earlier version does not say which it was" in notes
    assert "problems pass@1" in rows(pair, "SFT")


def test_edits_of_the_same_facts_are_compared_fact_by_fact(one: Path, other: Path) -> None:
    for line in range(10):  # the sixth fails in A too
        edit_lines(other / "edits" / "facts50.jsonl", line, success=False)
    change = rows(compare_runs(one, other), "Edits")["new answer at rank 1"].change
    assert change.delta == pytest.approx(-9 / 50) and change.n == 50 and change.verdict == "worse"
    edit_lines(other / "edits" / "facts50_prompts.jsonl", 0, prompt="Asked in another way:")
    found = compare_runs(one, other)
    kind = json.loads((other / "edits" / "facts50_prompts.jsonl").read_text().splitlines()[0])["kind"]
    assert kind == "prompt" and "after the prompt: right" not in rows(found, "Edits")
    assert "Edits: after the prompt: not asked alike in A and B, so not compared." in found.notes
    edit_lines(other / "edits" / "facts50.jsonl", 0, target_new="Atlantis")
    pair = compare_runs(one, other)
    assert "Edits" not in [part.title for part in pair.parts]
    assert "Edits: not of the same facts (50 in A, 50 in B, 49 of them the same), so not compared." in pair.notes


def test_settings_that_differ_are_listed_and_sampling_is_warned_of(one: Path, other: Path) -> None:
    recipe = (other / "recipe.toml").read_text()
    (other / "recipe.toml").write_text(recipe.replace("steps = 45", "steps = 46"))
    settings = json.loads((other / "eval" / "sft.json").read_text())["settings"]
    edit_json(other / "eval" / "sft.json", settings={**settings, "temperature": 1.0})
    pair = compare_runs(one, other)
    assert pair.set_apart == (("grpo.steps", "45", "46"),)
    assert "SFT: asked with another temperature (0.7 in A, 1.0 in B), which is part of the difference." in pair.notes
    page = render_pair(pair)
    assert '<td data-label="B">46</td>' in page and "another temperature" in page


def test_where_nothing_can_be_compared_it_is_said_why(one: Path, other: Path) -> None:
    for path in [*(other / "eval").glob("*"), *(other / "edits").glob("facts50*")]:
        path.unlink()
    with pytest.raises(
        UserError, match=r"cannot be compared\. Only A has the checkpoints base, SFT, GRPO and edited\."
    ):
        compare_runs(one, other)
    with pytest.raises(UserError, match="no such folder"):
        compare_runs(one, one / "nowhere")
