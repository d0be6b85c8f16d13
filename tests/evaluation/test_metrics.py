from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.evaluation.metrics import (
    majority_at_k,
    pass_at_k,
    score_problems,
)
from nanogpt_edit.evaluation.records import EvalRecord, read_records, write_records

VOTES = st.lists(st.sampled_from(["5", "5.0", "6", "7", None]), min_size=1, max_size=7)


def record(problem: str, sample: int, strict: str | None, *, gold: str = "5", **changes: object) -> EvalRecord:
    fields: dict[str, object] = {
        "skill": "problems",
        "problem_id": problem,
        "sample_index": sample,
        "prompt": "2 + 3?",
        "gold": gold,
        "text": f"<think></think><answer>{strict}</answer>",
        "strict": strict,
        "flexible": strict,
        "correct": strict == gold,
        "well_formed": strict is not None,
        "thinking_tokens": 10,
        "answer_tokens": 1,
        "finish_reason": "stop",
    }
    return EvalRecord(**(fields | changes))  # type: ignore[arg-type]


# --- pass@k ------------------------------------------------------------------------------------------------------


def test_pass_at_k_worked_by_hand() -> None:
    # n=4, c=1: a pair misses the right one in C(3,2)=3 of C(4,2)=6 ways.
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert pass_at_k([16, 16, 16], [0, 4, 16], 1) == pytest.approx([0, 0.25, 1])
    assert pass_at_k([16, 16], [0, 1], 16) == pytest.approx([0, 1])
    assert pass_at_k(200, 3, 100) == pytest.approx(float(1 - Fraction(comb(197, 100), comb(200, 100))))


@given(st.data())
def test_pass_at_k_equals_the_binomials(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 60))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(float(1 - Fraction(comb(n - c, k), comb(n, k))), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_the_impossible(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError):
        pass_at_k(n, c, k)


# --- majority@k --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["5", "5", "6"], 1.0),
        (["5", "6", "6"], 0.0),
        (["5", "6"], 1 / 2),
        (["5", "6", "7"], 1 / 3),
        (["5", "5.0", "6", "6", "7"], 1 / 2),
        (["6", "7"], 0.0),
        ([None, None, None, "5"], 1.0),
        ([None, None], 0.0),
    ],
)
def test_a_majority_with_ties_worked_by_hand(answers: list[str | None], expected: float) -> None:
    assert majority_at_k(answers, "5", len(answers)) == pytest.approx(expected)


def test_a_majority_of_two_of_three_by_hand() -> None:
    # pairs of (5, 5, 6): {5,5} right, {5,6} twice half right -> (1 + 1/2 + 1/2) / 3
    assert majority_at_k(["5", "5", "6"], "5", 2) == pytest.approx(2 / 3)
    # pairs of (5, None, None): {5,-} twice right, {-,-} never
    assert majority_at_k(["5", None, None], "5", 2) == pytest.approx(2 / 3)


@given(answers=VOTES, data=st.data())
def test_majority_equals_counting_every_subset(answers: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    expected = [_majority_by_hand(subset) for subset in combinations(answers, k)]
    assert majority_at_k(answers, "5", k) == pytest.approx(float(sum(expected) / len(expected)))


def test_many_subsets_are_sampled_close_to_the_mean_and_seeded() -> None:
    answers: list[str | None] = [*["5"] * 6, *["6"] * 5, *[None] * 5]
    exact = majority_at_k(answers, "5", 8, subsets=20_000)
    sampled = majority_at_k(answers, "5", 8, subsets=4_000, seed=1)
    assert 0 < abs(sampled - exact) < 0.03
    assert sampled == majority_at_k(answers, "5", 8, subsets=4_000, seed=1)
    assert majority_at_k(answers, "5", 1) == pytest.approx(6 / 16)
    with pytest.raises(ValueError):
        majority_at_k(answers, "5", 17)


def _majority_by_hand(votes: tuple[str | None, ...]) -> Fraction:
    tally: dict[float, int] = {}
    for vote in votes:
        if vote is not None:
            tally[float(vote)] = tally.get(float(vote), 0) + 1
    front = [number for number, count in tally.items() if count == max(tally.values())]
    return Fraction(int(5.0 in front), max(len(front), 1))


# --- all metrics of a set of records -----------------------------------------------------------------------------


def test_scores_are_one_value_per_problem() -> None:
    records = [
        record("a", 0, "5"),
        record("a", 1, "6", thinking_tokens=20, answer_tokens=3),
        record("b", 0, None, flexible="5", thinking_tokens=64, answer_tokens=0, finish_reason="length"),
        record("b", 1, "5"),
    ]
    scores = score_problems(records)
    assert (scores.problem_ids, scores.samples) == (("a", "b"), 2)
    assert {name: values.tolist() for name, values in scores.values.items()} == {
        "pass_at_1": [0.5, 0.5],
        "pass_at_2": [1.0, 1.0],
        "majority_at_2": [0.5, 1.0],
        "flexible_pass_at_1": [0.5, 1.0],
        "well_formed": [1.0, 0.5],
        "truncated": [0.0, 0.5],
        "thinking_tokens": [15.0, 37.0],
        "answer_tokens": [2.0, 0.5],
    }


def test_every_power_of_two_and_n_are_scored_by_default() -> None:
    scores = score_problems(record("a", i, "5") for i in range(12))
    assert [name for name in scores.values if name.startswith("pass")] == [f"pass_at_{k}" for k in (1, 2, 4, 8, 12)]
    assert [name for name in score_problems([record("a", 0, "5")], ks=(1, 16)).values if "_at_" in name] == [
        "pass_at_1",
        "flexible_pass_at_1",
    ]


def test_missing_samples_are_an_error() -> None:
    with pytest.raises(UserError, match=r"same number of completions.*found \[1, 2\]"):
        score_problems([record("a", 0, "5"), record("b", 0, "5"), record("b", 1, "5")])
    with pytest.raises(UserError, match=r"at least one; found \[\]"):
        score_problems([])


def test_sampled_problems_share_the_same_values_whatever_their_order() -> None:
    generator = np.random.default_rng(0)
    records = [record(f"p{i % 9}", i // 9, str(generator.integers(4, 7))) for i in range(9 * 16)]
    forward, backward = (
        score_problems(records),
        score_problems(sorted(records, key=lambda r: (r.problem_id, r.sample_index))),
    )
    assert forward.values["majority_at_8"].tolist() == backward.values["majority_at_8"].tolist()


def test_records_survive_the_disk_and_damage_is_named(tmp_path: Path) -> None:
    records = [record("a", 0, "5"), record("a", 1, None, text="<think>é\n")]
    write_records(tmp_path / "grpo.jsonl", records)
    assert read_records(tmp_path / "grpo.jsonl") == records
    text = (tmp_path / "grpo.jsonl").read_text(encoding="utf-8")
    (tmp_path / "grpo.jsonl").write_text(text.replace('"gold": "5", "text": "<think>é', '"text": "<think>é'), "utf-8")
    with pytest.raises(UserError, match=r'grpo\.jsonl:2: the field "gold" is missing'):
        read_records(tmp_path / "grpo.jsonl")
