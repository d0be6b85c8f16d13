"""What was done to a model: records in lineage.json, which version 0.1.0 wrote as sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanogpt_edit.checkpoint.checkpoint import load, save
from nanogpt_edit.checkpoint.lineage import read_lineage
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_json, write_json
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import EMBEDDED, LineageEntry


@pytest.mark.parametrize(
    ("sentence", "kind", "text", "problems"),
    [
        ("pretrained for 280 steps", "pretrained", EMBEDDED, EMBEDDED),
        ("SFT for 340 steps", "sft", None, EMBEDDED),
        ("GRPO for 45 steps, the last weights", "grpo", None, EMBEDDED),
        ("memit edit of 50 facts, layers 0, 1", "edited", None, None),
        ("rome edit of 1 fact, layer 3", "edited", None, None),
        ("reverted: memit edit of 50 facts, layers 0, 1", "reverted", None, None),
        ("taken from gpt2", "taken", None, None),
        ("loaded from small-gpt", "taken", None, None),
        ("chat template set: the bare question, then <think>", "template", None, None),
        ("SFTed by hand on an edit of a book", "note", None, None),
        ("pretrained on a page", "note", None, None),
    ],
)
def test_sentences_of_version_0_1_0_are_read(
    tmp_path: Path, sentence: str, kind: str, text: str | None, problems: str | None
) -> None:
    write_json(tmp_path / "lineage.json", {"lineage": [sentence]})
    (entry,) = read_lineage(tmp_path / "lineage.json")
    assert (entry.kind, entry.sentence, entry.text, entry.problems) == (kind, sentence, text, problems)


def test_records_come_back_as_they_were_and_a_sentence_as_a_note(speaking_gpt: GPT, tmp_path: Path) -> None:
    done = LineageEntry("sft", "SFT for 3 steps", problems="sums.jsonl")
    save(speaking_gpt, tmp_path / "a", lineage_note=done)
    save(load(tmp_path / "a"), tmp_path / "b", lineage_note="pretrained for 3 steps")
    assert load(tmp_path / "b").lineage == (done, LineageEntry("note", "pretrained for 3 steps"))
    assert read_json(tmp_path / "b" / "lineage.json")["lineage"] == [
        {"kind": "sft", "sentence": "SFT for 3 steps", "problems": "sums.jsonl"},
        {"kind": "note", "sentence": "pretrained for 3 steps"},
    ]
    assert (
        "1. SFT for 3 steps (problems of sums.jsonl)\n2. pretrained for 3 steps"
        in (tmp_path / "b" / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ("SFT for 3 steps", '"lineage" must be a list of records'),
        ([{"kind": "sft"}], "sentence"),
        ([{"kind": "sftt", "sentence": "SFT"}], '"kind" must be one of .*, found "sftt"'),
        ([{"kind": "sft", "sentence": "SFT", "problem": "sums"}], 'did you mean "problems"'),
        ([3], "found 3"),
    ],
)
def test_a_damaged_lineage_is_one_sentence(tmp_path: Path, entries: object, sentence: str) -> None:
    write_json(tmp_path / "lineage.json", {"lineage": entries})
    with pytest.raises(UserError, match=sentence) as error:
        read_lineage(tmp_path / "lineage.json")
    assert "lineage.json" in str(error.value)
