"""Records to JSON and back: what was written is read, and what cannot have been written is named."""

from __future__ import annotations

import copy
import inspect
import json
import math
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.common.errors import UserError, at_least
from nanogpt_edit.common.files import write_json, write_jsonl
from nanogpt_edit.common.records import Answering, Place, read_json_as, read_jsonl_as, to_value
from nanogpt_edit.data.facts import Fact, Neighbour
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.samples import Sample
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.records import FactScore
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.evaluation.prompt_records import PromptScore
from nanogpt_edit.evaluation.records import BlockNats, EvalRecord, Recall
from nanogpt_edit.pipeline.recipe import Recipe
from nanogpt_edit.pipeline.sweep import Trial
from nanogpt_edit.tracing.config import TraceConfig
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.pretrain_config import PretrainConfig
from nanogpt_edit.training.sft_config import SFTConfig

KINDS = (EvalRecord, Recall, Trial, BlockNats, FactScore, PromptScore)
OF_NO_TYPE = ("seven", 7, 7.5, True, None, [], ["seven"], {"seven": 7}, {"seven": "7"})
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
records = st.sampled_from(KINDS).flatmap(lambda kind: st.lists(st.builds(kind, **finite(kind)), min_size=1, max_size=3))


def finite(kind: type) -> dict[str, st.SearchStrategy[Any]]:
    """Values for the fields that hold numbers, without those that no JSON has."""
    made: dict[Any, st.SearchStrategy[Any]] = {
        float: NUMBERS,
        float | None: st.none() | NUMBERS,
        dict[str, float]: st.dictionaries(st.text(max_size=3), NUMBERS, max_size=3),
    }
    return {name: made[hint] for name, hint in get_type_hints(kind).items() if hint in made}


@given(records)
def test_what_is_written_is_read(written: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        write_jsonl(path, map(asdict, written))
        assert read_jsonl_as(type(written[0]), path) == written


@given(records, st.data())
def test_a_damaged_value_is_named_by_file_line_and_field(written: list[Any], data: st.DataObject) -> None:
    kind, row = type(written[0]), data.draw(st.integers(0, len(written) - 1))
    field = data.draw(st.sampled_from([field.name for field in fields(kind)]))
    wrong = [value for value in OF_NO_TYPE if not fits(value, get_type_hints(kind)[field])]
    lines: list[dict[str, object]] = [asdict(record) for record in written]
    needed = {field.name for field in fields(kind) if field.default is MISSING}  # 0.1.0 did not write the others
    damage = data.draw(st.sampled_from(("missing", "unknown", "wrong") if field in needed else ("unknown", "wrong")))
    if damage == "wrong":
        lines[row][field] = data.draw(st.sampled_from(wrong))
    else:
        value = lines[row].pop(field)
        if damage == "unknown":
            lines[row] |= {field: value, f"{field}_too": value}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        write_jsonl(path, lines)
        with pytest.raises(UserError) as caught:
            read_jsonl_as(kind, path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}:{row + 1}")
    assert field in sentence
    assert sentence.endswith("It is the wrong file, one of another version, or damaged.")


def fits(value: object, kind: Any) -> bool:
    """Is the JSON value one of the type? By hand, for the types that the records have."""
    return {
        str: isinstance(value, str),
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        bool | None: value is None or isinstance(value, bool),
        str | None: value is None or isinstance(value, str),
        float | None: value is None or (isinstance(value, int | float) and not isinstance(value, bool)),
        tuple[int, ...]: value == [],
        dict[str, float]: value == {"seven": 7},
    }[kind]


@dataclass(frozen=True)
class Shares:
    """Tables are no text, though texts are what their keys are."""

    shares: dict[str, float]


def test_a_table_is_not_taken_for_its_parts(tmp_path: Path) -> None:
    write_json(tmp_path / "shares.json", {"shares": {"a": 1}})
    assert read_json_as(Shares, tmp_path / "shares.json") == Shares({"a": 1.0})
    for wrong in ("a", 1.0):
        write_json(tmp_path / "shares.json", {"shares": wrong})
        with pytest.raises(UserError, match='"shares" must be a table of fields'):
            read_json_as(Shares, tmp_path / "shares.json")


@dataclass(frozen=True)
class Share:
    """One whose value is checked when it is made."""

    share: float

    def __post_init__(self) -> None:
        at_least(0, self, "share")


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("{}", 'the field "share" is missing (a number).'),
        ('{"share": -1}', "share is -1.0; it cannot be negative."),
        ('{"share": NaN}', "not valid JSON (NaN is no number)."),
    ],
)
def test_a_checked_record_is_checked(tmp_path: Path, written: str, sentence: str) -> None:
    path = tmp_path / "share.json"
    path.write_text(written, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_json_as(Share, path)
    assert str(caught.value).startswith(f"{path}: {sentence}")


@dataclass(frozen=True)
class Pair:
    left: int
    right: str | None


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"left": 1, "right": 2}, 'pair.json: "right" must be text in quotes or null, found 2.'),
        ({"left": None, "right": "none"}, 'pair.json: "left" must be a whole number, found null.'),
        ({"right": "a"}, 'pair.json: the field "left" is missing (a whole number).'),
        ({"left": 1, "right": "a", "rigth": "b"}, 'pair.json has an unknown field "rigth"; did you mean "right"?'),
    ],
)
def test_the_sentences(tmp_path: Path, value: dict[str, object], sentence: str) -> None:
    write_json(tmp_path / "pair.json", value)
    with pytest.raises(UserError) as caught:
        read_json_as(Pair, tmp_path / "pair.json")
    assert sentence in str(caught.value)


def test_the_word_none_is_a_text_in_json(tmp_path: Path) -> None:
    (tmp_path / "pair.json").write_text(json.dumps({"left": 1, "right": "none"}))
    assert read_json_as(Pair, tmp_path / "pair.json") == Pair(1, "none")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Fact(),
            "Fact: missing a required argument: 'prompt'; it needs prompt, subject, target_new, target_true",
        ),
        (lambda: Fact("Egypt", "Egypt", "Rome"), "missing a required argument: 'target_true'"),
        (lambda: Fact("Egypt", prompt="Egypt"), "multiple values for argument 'prompt'"),
        (lambda: Fact(promt="Egypt"), 'Fact has an unknown field "promt"; did you mean "prompt"?'),
        (lambda: Neighbour(), "Neighbour: missing a required argument: 'prompt'"),
        (lambda: Problem("1 + 1"), "Problem: missing a required argument: 'rationale'"),
        (lambda: Sample(), "Sample: missing a required argument: 'token_ids'"),
        (lambda: EditConfig(*range(99)), "EditConfig: too many positional arguments; it needs nothing, and has preset"),
        (lambda: replace(EvaluateConfig(), smples=3), 'unknown field "smples"; did you mean "samples"?'),
        (lambda: Fact(None, "Egypt", "Rome", "Cairo"), 'Fact: "prompt" must be text, found None.'),
        (lambda: Fact("Egypt", "Egypt", "Rome", "Cairo", paraphrases="In"), '"paraphrases" must be a list of text'),
        (lambda: Neighbour("Libya", ("Tripoli",)), 'Neighbour: "target_true" must be text'),
        (lambda: Problem("1 + 1", "", 2, "one"), 'Problem: "answer" must be text, found 2.'),
        (lambda: Problem("\ud800 + 1", "", "2", "one"), r"question has '\\ud800' at character 1, half of a surrogate"),
        (lambda: EditConfig(method="rom"), 'method is "rom"; did you mean "rome"'),
        (lambda: EditConfig(layers=(0, 1.5)), r'"layers\[1\]" must be a whole number, found 1.5'),
        (lambda: EditConfig(clamp=math.inf), "clamp is inf; it must be a finite number"),
        (lambda: Sampling(temperature=math.nan), "temperature is nan; it must be a finite number"),
        (lambda: Sampling(seed=10**22), "seed is a number of 74 bits; it can have 63 at most"),
        (lambda: SFTConfig(learning_rate="fast"), 'SFTConfig: "learning_rate" must be a number, found "fast"'),
        (lambda: GRPOConfig(rewards={"accuracy": math.nan}), "rewards.accuracy is nan; it must be a finite number"),
        (lambda: PretrainConfig(steps=True), '"steps" must be a whole number, found true'),
        (lambda: EvaluateConfig(text=b"t"), '"text" must be text or None, found a bytes'),
        (lambda: TraceConfig(sites="mlp_out"), '"sites" must be a list of one of'),
        (lambda: Recipe(seed=10**5000), "seed is a number of 16610 bits"),
    ],
)
def test_a_record_made_in_python_is_held_to_the_same(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


def test_what_is_made_is_copied_pickled_and_shown_as_ever() -> None:
    fact = Fact("The capital of Egypt is", "Egypt", "Alexandria", "Cairo")
    assert pickle.loads(pickle.dumps(fact)) == copy.deepcopy(fact) == replace(fact, id="") == fact
    assert list(inspect.signature(Neighbour).parameters) == ["prompt", "target_true"]

    class Careless(metaclass=Answering):
        def __init__(self) -> None:
            raise TypeError("a mistake of the program's own")

    with pytest.raises(TypeError, match="of the program's own"):
        dataclass(Careless)()


@pytest.mark.parametrize("function", [len, partial(len, ""), str.upper, Path])
def test_whatever_can_be_called_is_a_function(function: object) -> None:
    kind = Callable[[str], object]
    assert to_value(kind, function, "make", Place("here")) is function
    with pytest.raises(UserError, match='"make" must be a function, found 5'):
        to_value(kind, 5, "make", Place("here"))
