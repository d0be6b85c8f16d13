"""Splits: nothing is trained on and tested, nothing is lost, everything left out is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from word_problems import numbered, write

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.problems import read_problems
from nanogpt_edit.data.splits import ProblemsConfig, load_splits


def test_a_folder_keeps_its_test_split_whole(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *numbered(100))
    write(tmp_path / "test.jsonl", *numbered(30, first=500))
    config = ProblemsConfig(path=str(tmp_path), validation=20)
    splits = load_splits(config, seed=1)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [80, 20, 30]
    assert {p.id for p in splits.test} == {f"test:{i}" for i in range(1, 31)}
    assert all(p.id.startswith("train:") for p in splits.validation)
    assert not {p.question for p in splits.train} & {p.question for p in splits.validation}
    assert splits == load_splits(config, seed=1)
    other = load_splits(config, seed=2)
    assert other.validation != splits.validation
    assert other.test == splits.test
    assert read_problems(tmp_path, split="test") == splits.test
    assert any("20 of the training problems were set aside" in note for note in splits.notes)


def test_a_folder_may_bring_its_own_validation(tmp_path: Path) -> None:
    for name, first in (("train", 0), ("validation", 100), ("test", 200)):
        write(tmp_path / f"{name}.jsonl", *numbered(10, first=first))
    splits = load_splits(ProblemsConfig(path=str(tmp_path), validation=5), seed=0)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [10, 10, 10]


def test_a_training_question_that_is_also_tested_is_taken_out_and_said(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *numbered(40), {"question": "what IS  500 plus 1?", "answer": "501"})
    write(tmp_path / "test.jsonl", *numbered(5, first=500))
    splits = load_splits(ProblemsConfig(path=str(tmp_path), validation=10), seed=0)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [30, 10, 5]
    assert any("1 problems were left out because their question is also in the test split" in n for n in splits.notes)


def test_a_lone_file_is_cut_80_10_10_and_no_seed_sees_the_test(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", *numbered(1000))
    splits = [load_splits(ProblemsConfig(path=str(path)), seed=seed) for seed in (0, 1)]
    assert [len(splits[0].train), len(splits[0].validation), len(splits[0].test)] == [800, 100, 100]
    assert splits[0].test == splits[1].test
    assert splits[0].validation != splits[1].validation
    shuffled = write(tmp_path / "other.jsonl", *reversed(numbered(1000)))
    questions = {p.question for p in load_splits(ProblemsConfig(path=str(shuffled)), seed=0).test}
    assert questions == {p.question for p in splits[0].test}, "the choice is the question's, not its line's"
    assert any("100 problems were set aside" in note for note in splits[0].notes)
    assert any("200 were asked for" in note for note in splits[0].notes)


@settings(max_examples=30)
@given(
    kinds=st.lists(st.integers(0, 30), min_size=3, max_size=60).filter(lambda kinds: len(set(kinds)) > 4),
    seed=st.integers(0, 3),
)
def test_a_cut_loses_nothing_and_never_separates_equal_questions(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[int], seed: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "mine.jsonl"
    write(path, *({"question": f"What is {kind}?", "answer": str(i)} for i, kind in enumerate(kinds)))
    splits = load_splits(ProblemsConfig(path=str(path), validation=3), seed=seed)
    parts = [splits.train, splits.validation, splits.test]
    assert sorted(int(p.answer) for part in parts for p in part) == list(range(len(kinds)))
    questions = [{p.question for p in part} for part in parts]
    assert sum(map(len, questions)) == len(set(kinds))


def test_limits_and_impossible_settings(tmp_path: Path) -> None:
    path = str(write(tmp_path / "mine.jsonl", *numbered(100)))
    splits = load_splits(ProblemsConfig(path=path, limit=7), seed=0)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [7, 7, 7]
    assert any("limited to its first 7" in note for note in splits.notes)
    for wrong in ({"limit": 0}, {"validation": 0}, {"validation": -1}):
        with pytest.raises(UserError, match="must be at least 1"):
            ProblemsConfig(path=path, **wrong)
    with pytest.raises(UserError, match=r"problems\."):
        load_splits(ProblemsConfig(), seed=0)
    two = str(write(tmp_path / "two.jsonl", *numbered(2)))
    with pytest.raises(UserError, match="different problems are too few"):
        load_splits(ProblemsConfig(path=two), seed=0)
    with pytest.raises(UserError, match=r"no train.jsonl in this folder \(it holds .*two.jsonl"):
        (tmp_path / "mine.jsonl").unlink()
        load_splits(ProblemsConfig(path=str(tmp_path)), seed=0)
