"""The results in a model's card are the ledger's, and as a hub's page reads them; nobody else's card is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from report_run import make_run

from nanogpt_edit.common.card import Card, card_text, read_card
from nanogpt_edit.common.files import read_json, write_json
from nanogpt_edit.report.card import renew_cards
from nanogpt_edit.report.read import read_run
from nanogpt_edit.report.summary import summarise

OTHERS = "# Mine\n\nNobody's business.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the cards of its models: one of ours, one that somebody wrote, one of other weights, one renewed."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "tiny")
    for stage in ("base", "sft", "grpo", "edited"):
        (folder / stage).mkdir()
        measured = read_json(folder / "eval" / f"{stage}.json")["fingerprint"]
        write_json(folder / stage / "config.json", {"torch_dtype": "float32"})
        write_json(folder / stage / "lineage.json", {"fingerprint": "other" if stage == "grpo" else measured})
        ours = card_text(Card("Above.", made="# The model", results="Older results."))
        (folder / stage / "README.md").write_text(OTHERS if stage == "sft" else ours, encoding="utf-8")
    run = read_run(folder)
    renew_cards(run, summarise(run))
    return folder


def card(folder: Path, stage: str) -> str:
    return (folder / stage / "README.md").read_text(encoding="utf-8")


def test_a_page_of_the_hub_shows_the_ledgers_numbers(folder: Path) -> None:
    found = ModelCard.load(folder / "edited" / "README.md").data
    assert found.model_name == "tiny/edited"
    row = next(row for row in summarise(read_run(folder)).ledger.rows if row.stage == "edited")
    shown = {each.metric_name.partition(" (95% interval")[0]: each for each in found.eval_results}
    first = row.cells[0]
    assert first is not None
    assert shown["problems pass@1, %"].metric_value == pytest.approx(100 * first.value.value, abs=0.05)
    assert shown["problems pass@1, %"].metric_name.endswith(f", n {first.value.n})")
    assert shown["held-out text, nats per token"].metric_type == "nats_per_token"
    assert {each.task_type for each in found.eval_results} == {"text-generation"}


def test_verdicts_expectations_and_facts_are_told(folder: Path) -> None:
    edited, base = card(folder, "edited"), card(folder, "base")
    assert "change since GRPO" in edited and "change since" not in base
    assert "The edit gained" in edited
    assert "edits, new answer at rank 1 ≥ 96%" in edited and "GRPO, true facts recalled" not in edited
    assert "base, true facts recalled ≥ 95%" in base and "What the edit did" not in base
    assert edited.count("\n| The ") + edited.count("\n| ") > 60, "fifty facts, each in a row"
    assert "Older results." not in edited and read_card(edited).theirs == "Above."


def test_a_card_of_somebody_else_and_one_of_other_weights_are_left_alone(folder: Path) -> None:
    assert card(folder, "sft") == OTHERS
    assert "Older results." in card(folder, "grpo") and "model-index" not in card(folder, "grpo")


def test_renewed_twice_it_is_the_same(folder: Path) -> None:
    before = card(folder, "edited")
    run = read_run(folder)
    renew_cards(run, summarise(run))
    assert card(folder, "edited") == before
