"""Word problems: read from files and the hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import huggingface_hub
import pytest
from conftest import shared_data
from word_problems import numbered, write

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.hub_datasets import read_splits
from nanogpt_edit.data.problems import Problem, read_problems
from nanogpt_edit.data.splits import ProblemsConfig, load_splits
from nanogpt_edit.data.world.world import make_world
from nanogpt_edit.pipeline.recipe import load_recipe

NATALIA = {
    "question": " How many clips did Natalia sell? ",
    "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether <<48+24=72>>1,072 clips.\n#### 1,072",
}


# --- one record --------------------------------------------------------------------------------------------------


def test_a_gsm8k_record_loses_its_calculator_marks_and_commas(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", NATALIA)
    assert read_problems(path) == (
        Problem(
            question="How many clips did Natalia sell?",
            rationale="Natalia sold 48/2 = 24 clips in May.\nAltogether 1,072 clips.",
            answer="1072",
            id="train:1",
        ),
    )


def test_without_a_separator_the_whole_answer_is_the_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", {"q": "How much?", "a": "$1,000 in all"}, "", {"q": "And now?", "a": 7.0})
    first, second = read_problems(path, question_field="q", answer_field="a")
    assert (first.rationale, first.answer) == ("", "$1000 in all")
    assert (second.answer, second.id) == ("7", "mine:3"), "the id is the line in the file, blank lines counted"


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("1,000", "1000"),
        ("$1,234,567.5", "$1234567.5"),
        ("-1,000", "-1000"),
        ("1,23,456 rupees", "123456 rupees"),
        ("½", "½"),
        ("5, that is all", "5, that is all"),
    ],
)
def test_only_thousands_commas_are_taken_out(answer: str, kept: str, tmp_path: Path) -> None:
    [problem] = read_problems(write(tmp_path / "mine.jsonl", {"question": "How many?", "answer": f"#### {answer}"}))
    assert problem.answer == kept


def test_whole_characters_of_two_escapes_are_text(tmp_path: Path) -> None:
    [problem] = read_problems(write(tmp_path / "mine.jsonl", '{"question": "3 \\ud83c\\udf4e?", "answer": "3"}'))
    assert problem.question == "3 🍎?"


def test_svamp_joins_story_and_question(tmp_path: Path) -> None:
    record = {"ID": "chal-1", "Body": "A pack costs 76 dollars. If there is a discount of 25 dollars", "Answer": 51.0}
    record |= {"Question": "How much is it?", "Equation": "( 76.0 - 25.0 )", "Type": "Subtraction"}
    path = tmp_path / "SVAMP.json"
    path.write_text(json.dumps([record, record | {"Body": "One costs 9.", "Equation": "( 6.0 - ( 3.0 + 2.0 ) )"}]))
    first, second = read_problems(path)
    assert first.question == "A pack costs 76 dollars. If there is a discount of 25 dollars, how much is it?"
    assert (first.rationale, first.answer) == ("76 - 25 = 51", "51")
    assert first.id == "SVAMP:1"
    assert (second.question, second.rationale) == ("One costs 9. How much is it?", "6 - ( 3 + 2 ) = 51")


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ('{"question": "a", ', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"question": "a", "answer": ' + "9" * 5_000 + "}", "not valid JSON"),
        ('{"question": "a", "answer": 1e999}', "1e999 is beyond what a number can be"),
        ("[1]", "object was expected, found list"),
        ({"question": "a"}, 'no field "answer".*has "question".*--problems.answer-field'),
        ({"question": "a", "answer": None}, 'field "answer" should be text or a number, found NoneType'),
        ({"question": " ", "answer": "1"}, "question is empty"),
        ({"question": "a", "answer": "so it is\n#### blue"}, 'answer "blue" holds no number'),
        ({"question": "a", "answer": "4 so\n####"}, 'answer "" holds no number'),
        ({"question": "a", "answer": "</think> 4"}, "holds </think>"),
        ({"question": "a", "answer": "so<|endoftext|>\n#### 4"}, r"holds <\|endoftext\|>, a token"),
        ({"question": "a <|im_end|>", "answer": "4"}, r"holds <\|im_end\|>, a token"),
        ({"question": "a</s>", "answer": "4"}, "holds </s>, a token"),
        ({"question": "a <|eot_id|>", "answer": "4"}, r"holds <\|eot_id\|>, a token"),
        ('{"question": "a \\ud83c", "answer": "4"}', "half of a surrogate pair"),
        ('{"question": "a", "answer": "\\udfff 4"}', "half of a surrogate pair"),
        ('{"question": "a \\udf4e\\ud83c", "answer": "4"}', "half of a surrogate pair"),
        ({"question": "a", "answer": "#### 2,5"}, 'answer "2,5" has a comma between digits that is no thousands'),
        ({"question": "a", "answer": "#### (3,4)"}, r'answer "\(3,4\)" has a comma between digits'),
        ({"question": "a", "answer": "#### 0,125"}, "no thousands' comma"),
        ({"question": "a", "answer": "#### 1,23,45"}, "no thousands' comma"),
        ({"question": "a", "answer": "#### 1.234,56"}, "no thousands' comma"),
        ({"question": "a", "answer": "#### ３，４"}, "no thousands' comma"),
        ({"question": "a" * 1_000_001, "answer": "4"}, "the problem has 1,000,0.. characters"),
    ],
)
def test_a_bad_record_stops_with_its_line(tmp_path: Path, record: object, says: str) -> None:
    path = write(tmp_path / "train.jsonl", NATALIA, "", record, NATALIA)
    with pytest.raises(UserError, match=rf"train\.jsonl:3: .*(?:{says})"):
        read_problems(path)


def test_a_damaged_array_and_a_file_of_bytes_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"question": "a",\n')
    with pytest.raises(UserError, match=r"a\.json:2: not valid JSON"):
        read_problems(tmp_path / "a.json")
    (tmp_path / "b.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(UserError, match=r"b\.jsonl:1: not UTF-8 text .* at byte 14"):
        read_problems(tmp_path / "b.jsonl")


def test_skipped_records_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", *numbered(20), {"question": "a", "answer": "none"}, "oops")
    splits = load_splits(ProblemsConfig(path=str(path), skip_bad_records=True), seed=0)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 20
    assert any("2 of 22 records were left out; first" in note and "mine.jsonl:21" in note for note in splits.notes)


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_an_empty_file_says_what_a_problem_looks_like(tmp_path: Path, text: str) -> None:
    (tmp_path / "none.jsonl").write_text(text)
    with pytest.raises(UserError, match=r'none\.jsonl: no problems in it.*"question"'):
        read_problems(tmp_path / "none.jsonl")


@pytest.mark.parametrize("source", ["nowhere.jsonl", "./nowhere", "/no/where/at/all", "nowhere"])
def test_a_missing_path_is_not_sought_on_the_hub(source: str) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        load_splits(ProblemsConfig(path=source), seed=0)


def test_the_example_that_comes_with_the_package_is_held_out_from_the_demo() -> None:
    problems = read_problems("example")
    assert len(problems) == 20
    assert problems[0].id == "example:1"
    assert all(problem.rationale and problem.answer.isdigit() for problem in problems)
    recipe = load_recipe("tiny")
    trained = {problem.question for problem in make_world(recipe.world.seeded(recipe.seed)).problems.train}
    assert not trained & {problem.question for problem in problems}
    assert len(load_splits(ProblemsConfig(path="example"), seed=0).train) > 10


# --- the hub -----------------------------------------------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[..., object]) -> None:
    module = ModuleType("datasets")
    vars(module)["load_dataset"] = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hub_name_gives_the_same_splits_as_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"train": numbered(50), "test": numbered(10, first=500)}
    asked: list[tuple[object, ...]] = []

    def load_dataset(name: str, configuration: str | None, *, split: str | None) -> object:
        asked.append((name, configuration, split))
        return rows[split] if split else rows

    stand_in(monkeypatch, load_dataset)
    splits = load_splits(ProblemsConfig(path="gsm8k", validation=10), seed=0)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [40, 10, 10]
    assert read_problems("openai/gsm8k") == splits.test
    assert asked == [("openai/gsm8k", "main", None), ("openai/gsm8k", "main", "test")]
    rows["train"][3] = {"question": "?", "answer": "none"}
    with pytest.raises(UserError, match=r'someone/else train:4: the answer "none" holds no number'):
        load_splits(ProblemsConfig(path="someone/else"), seed=0)


def test_offline_the_error_names_two_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> object:
        raise ConnectionError("no route\nto host")

    stand_in(monkeypatch, load_dataset)
    with pytest.raises(UserError, match=r"openai/gsm8k: .*no route to host\)\. Two ways .*download.*cache.*local file"):
        load_splits(ProblemsConfig(path="openai/gsm8k"), seed=0)


class ConnectError(Exception):
    """As the HTTP library says it: no such name, no route, nobody there."""


class ReadTimeout(Exception):
    """Somebody is there, and slow."""


@pytest.mark.parametrize(("answer", "offline"), [(ConnectError(), True), (ReadTimeout(), False), (None, False)])
def test_a_hub_that_does_not_answer_is_asked_once(
    answer: Exception | None, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked, seen = SimpleNamespace(HF_HUB_OFFLINE=False), [], []

    def ask(url: str) -> None:
        asked.append(url)
        if answer:
            raise answer

    def load_dataset(*_: object, **__: object) -> object:
        seen.append(config.HF_HUB_OFFLINE)  # then the library looks into its cache alone, and does not try again
        raise ConnectionError("offline mode is enabled" if config.HF_HUB_OFFLINE else "no such data set")

    stand_in(monkeypatch, load_dataset)
    monkeypatch.setattr(sys.modules["datasets"], "config", config, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    with pytest.raises(UserError, match="the hub does not answer. Two ways" if offline else "no such data set. Two"):
        read_splits("a/b", wanted=("train",))
    assert seen == [offline]
    assert not config.HF_HUB_OFFLINE
    (url,) = asked
    assert url.endswith("/datasets/a/b/resolve/main/README.md")


def test_a_data_set_without_the_splits_says_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, lambda *_, **__: {"everything": numbered(3)})
    with pytest.raises(UserError, match="no split named train or validation or test; it has everything"):
        load_splits(ProblemsConfig(path="a/b"), seed=0)


# --- the real thing ----------------------------------------------------------------------------------------------


def test_all_of_gsm8k_is_read(gsm8k: Path) -> None:
    splits = load_splits(ProblemsConfig(path=str(gsm8k)), seed=0)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [7_273, 200, 1_319]
    everything = [*splits.train, *splits.validation, *splits.test]
    assert not any("<<" in p.rationale or ">>" in p.rationale or "####" in p.rationale for p in everything)
    assert all(p.rationale and p.answer.lstrip("-").isdigit() for p in everything)
    first = next(p for p in everything if p.id == "train:1")
    assert first.answer == "72"
    assert first.rationale.startswith("Natalia sold 48/2 = 24 clips in May.\n")


def test_all_of_svamp_is_read() -> None:
    problems = read_problems(shared_data("math") / "SVAMP.json")
    assert len(problems) == 1_000
    assert all(p.answer.lstrip("-").isdigit() and p.rationale.endswith(f"= {p.answer}") for p in problems)
    assert problems[0].question == (
        "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack, "
        "how much do you have to pay to buy each pack?"
    )
