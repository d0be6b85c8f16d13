"""Judging a recipe's expectations: hand-computed verdicts on both sides of a bound and on it."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.stats import share
from nanogpt_edit.data.fact_files import read_facts
from nanogpt_edit.pipeline.checks import summary_paths
from nanogpt_edit.pipeline.recipe import load_recipe, packaged_recipes
from nanogpt_edit.report.expect import Expectation, check_expectations, judge, parse_bound
from nanogpt_edit.report.labels import measured


def quantity(value: float, low: float, high: float, n: int = 100) -> dict[str, object]:
    return {"value": value, "low": low, "high": high, "n": n}


def summary(**skill: object) -> dict[str, object]:
    return {"stages": {"sft": {"problems": skill}}, "comparisons": {}, "edit": None, "seconds": {"sft": 12.5}}


def judge_one(bound: str, value: float, low: float, high: float, n: int = 100) -> Expectation:
    (judged,) = judge({"stages.sft.problems.x": bound}, summary(x=quantity(value, low, high, n)))
    return judged


@pytest.mark.parametrize(
    ("bound", "low", "high", "verdict"),
    [
        (">= 0.5", 0.5, 0.7, "pass"),  # the whole interval, its lower end on the bound
        ("> 0.5", 0.5, 0.7, "inconclusive"),  # strictly more: the lower end does not hold
        (">= 0.5", 0.3, 0.5, "inconclusive"),  # the upper end holds
        ("> 0.5", 0.3, 0.5, "fail"),  # nothing in it is more than 0.5
        (">= 0.5", 0.3, 0.4999, "fail"),
        ("<= 0.5", 0.3, 0.5, "pass"),
        ("< 0.5", 0.3, 0.5, "inconclusive"),
        ("<= 0.5", 0.5, 0.7, "inconclusive"),
        ("< 0.5", 0.5, 0.7, "fail"),
        ("<= 0.5", 0.5001, 0.7, "fail"),
        (">= 0.5", 0.5, 0.5, "pass"),  # an interval of no width
    ],
)
def test_the_whole_interval_is_judged_and_its_ends_count(bound: str, low: float, high: float, verdict: str) -> None:
    assert judge_one(bound, (low + high) / 2, low, high).verdict == verdict


def test_the_n_that_would_decide_is_scaled_by_the_square_of_the_half_width() -> None:
    # 0.60 ± 0.05 at n = 100 against 0.58: the half-width must shrink from 0.05 to 0.02, so n grows 6.25 times.
    assert judge_one(">= 0.58", 0.60, 0.55, 0.65).n_needed == 625
    # Below the bound the upper half-width counts: 0.60 + 0.10 against 0.65, half-width 0.10 -> 0.05, n x 4.
    assert judge_one(">= 0.65", 0.60, 0.55, 0.70).n_needed == 400


def test_a_value_on_the_bound_is_decided_by_no_n() -> None:
    judged = judge_one(">= 0.6", 0.6, 0.5, 0.7)
    assert (judged.verdict, judged.n_needed) == ("inconclusive", None)


@pytest.mark.parametrize("suffix", ["(value)", "value", "(point)"])
def test_a_census_is_judged_by_its_value(suffix: str) -> None:
    assert judge_one(f">= 0.96 {suffix}", 0.96, 0.90, 1.0).verdict == "pass"
    assert judge_one(f"> 0.96 {suffix}", 0.96, 0.90, 1.0).verdict == "fail"


def test_a_plain_number_is_judged_by_its_value() -> None:
    (judged,) = judge({"seconds.sft": "<= 12.5"}, summary())
    assert (judged.verdict, judged.value, judged.low) == ("pass", 12.5, None)


def test_a_comparison_is_judged_by_its_delta() -> None:
    numbers = {"comparisons": {"grpo-sft": {"pass_at_1": {"delta": 0.05, "low": 0.03, "high": 0.07, "p_value": 0.001}}}}
    (judged,) = judge({"comparisons.grpo-sft.pass_at_1": "> 0"}, numbers)
    assert (judged.verdict, judged.value) == ("pass", 0.05)


def test_an_unquoted_dotted_key_means_the_same_path() -> None:
    nested = {"stages": {"sft": {"problems": {"x": ">= 0.5"}}}}
    (judged,) = judge(nested, summary(x=quantity(0.6, 0.55, 0.65)))
    assert (judged.metric, judged.verdict) == ("stages.sft.problems.x", "pass")


@pytest.mark.parametrize(
    "path",
    ["stages.grpo.problems.pass_at_1", "comparisons.grpo-sft.pass_at_1", "edit.success", "seconds.grpo"],
)
def test_a_stage_that_has_not_run_is_not_measured(path: str) -> None:
    (judged,) = judge({path: ">= 0.5"}, summary(x=quantity(0.6, 0.5, 0.7)))
    assert (judged.verdict, judged.value) == ("not measured", None)


MISSPELT = ["stages.sft.problems.pas_at_1", "stage.sft.problems.pass_at_1", "seconds.sftt"]
MALFORMED = ["0.98", "=> 0.98", ">= much", "", ">= 0.9 (valu)", ">= 0.9 0.8", 0.98, None]


@pytest.mark.parametrize("path", MISSPELT)
def test_a_misspelt_path_is_judged_wrong_and_named_with_its_neighbours(path: str) -> None:
    (judged,) = judge({path: ">= 0.5"}, summary(pass_at_1=quantity(0.6, 0.5, 0.7)))
    assert judged.verdict == "wrong"
    assert f'"{path}"' in judged.reason
    assert ("seconds.sft" if "seconds" in path else "stages.sft.problems.pass_at_1") in judged.reason


@pytest.mark.parametrize("bound", MALFORMED)
def test_a_malformed_bound_is_judged_wrong_and_named_with_its_key(bound: object) -> None:
    (judged,) = judge({"stages.sft.problems.x": bound}, summary(x=quantity(0.6, 0.5, 0.7)))
    assert judged.verdict == "wrong"
    assert "stages.sft.problems.x" in judged.reason


@pytest.mark.parametrize("path", MISSPELT)
def test_a_misspelt_path_is_refused_before_anything_is_measured(path: str) -> None:
    known = {"stages.sft.problems.pass_at_1", "seconds.sft", "edit.success"}
    with pytest.raises(UserError, match=r"there is no such number in summary\.json\. Nearest: "):
        check_expectations({path: ">= 0.5"}, known)
    check_expectations(dict.fromkeys(known, "> 0"), known)


@pytest.mark.parametrize("bound", MALFORMED)
def test_a_malformed_bound_is_refused_before_anything_is_measured(bound: object) -> None:
    with pytest.raises(UserError, match=r"stages\.sft\.problems\.x"):
        check_expectations({"stages.sft.problems.x": bound}, {"stages.sft.problems.x"})


@pytest.mark.parametrize(
    ("metric", "bound", "perfect", "n", "needed"),
    [
        ("pass_at_1", ">= 0.96", 1.0, 50, 93),  # 92.2 problems: n / (n + 3.8415) = 0.96
        ("pass_at_1", "> 0.99", 1.0, 380, 381),
        ("truncated", "<= 0.03", 0.0, 50, 125),
        ("well_formed", ">= 0.95", 1.0, 12, 73),
    ],
)
def test_what_even_a_perfect_result_could_not_show_is_undecidable(
    metric: str, bound: str, perfect: float, n: int, needed: int
) -> None:
    for size, verdict in ((n, "undecidable"), (needed - 1, "undecidable"), (needed, "pass")):
        found = asdict(share([perfect] * size))
        (judged,) = judge({f"stages.sft.problems.{metric}": bound}, summary(**{metric: found}))
        assert judged.verdict == verdict, size
    (judged,) = judge({f"stages.sft.problems.{metric}": bound}, summary(**{metric: asdict(share([perfect] * n))}))
    assert judged.n_needed == needed
    assert f"undecidable with n = {n}" in measured(judged)


def test_an_interval_beyond_the_bound_fails_however_few_there_are() -> None:
    (judged,) = judge({"stages.sft.problems.x": ">= 0.96"}, summary(x=asdict(share([0.0] * 20))))
    assert judged.verdict == "fail"


@pytest.mark.parametrize("name", packaged_recipes())
def test_what_a_packaged_recipe_expects_is_there_and_could_be_shown(name: str) -> None:
    recipe = load_recipe(name)
    check_expectations(recipe.expect, summary_paths(recipe))
    facts = len(read_facts(recipe.facts))
    for path, text in recipe.expect.items():
        n = facts if path.startswith("edit.") else recipe.evaluate.problems if ".problems." in path else 200
        perfect = 1.0 if ">" in text else 0.0
        table: dict[str, object] = {"edit": {path.split(".")[-1]: asdict(share([perfect] * n))}}
        _, stage, skill, metric = path.split(".") if path.startswith("stages.") else ("", "sft", "problems", "x")
        table["stages"] = {stage: {skill: {metric: asdict(share([perfect] * n))}}}
        if not path.startswith("comparisons."):
            (judged,) = judge({path: text}, table)
            assert judged.verdict == "pass", path


def test_bounds_are_read_with_signs_and_exponents() -> None:
    assert parse_bound("> -1.5e-2", key="k").limit == -0.015
    assert parse_bound("<=.5", key="k").limit == 0.5


@given(
    limit=st.floats(0, 1),
    low=st.floats(0, 1),
    width=st.floats(0, 1),
    place=st.floats(0, 1),
    operator=st.sampled_from([">=", ">", "<=", "<"]),
)
def test_enough_samples_always_decide(limit: float, low: float, width: float, place: float, operator: str) -> None:
    value, high = low + place * width, low + width
    judged = judge_one(f"{operator} {limit!r}", value, low, high)
    if judged.n_needed is None:
        assert judged.verdict in ("pass", "fail") or math.isclose(value, limit, abs_tol=1e-4)
        return
    assert judged.n_needed > 100
    shrink = math.sqrt(100 / judged.n_needed) * (1 - 1e-9)
    if judged.verdict == "undecidable":
        return
    ends = value - (value - low) * shrink, value + (high - value) * shrink
    again = judge_one(f"{operator} {limit!r}", value, *ends, n=judged.n_needed)
    assert again.verdict in ("pass", "fail")
