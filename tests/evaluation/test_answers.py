from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.common.reasoning import TAGS
from nanogpt_edit.evaluation.answers import extract, is_correct, last_number, normalise

# What a model may write: tags, numbers, signs and prose, in any order.
PIECES = st.sampled_from(
    [*TAGS, "5", "-", "−", "1,000", ".", "/", "0", "$", "%", "=", "\n", " ", "apples", "é", "\u2003"]
)
MODEL_TEXT = st.one_of(st.text(), st.lists(PIECES, max_size=14).map("".join))


@pytest.mark.parametrize(
    ("answer", "canonical"),
    [
        ("72", "72"),
        ("72.", "72"),
        ("5.0", "5"),
        ("5.50", "5.5"),
        (".5", "0.5"),
        ("007", "7"),
        ("-0", "0"),
        ("$1,000.00", "1000"),
        ("1,234,567.80", "1234567.8"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("\u22125", "-5"),
        ("£ 12", "12"),
        ("50%", "50"),
        (" 5 apples", "5"),
        ("**5**", "5"),
        (r"\boxed{5}", "5"),
        ("(5)", "5"),
        ("x = -3", "-3"),
        ("3+2=5", "5"),
        ("3/4", "0.75"),
        ("1 1/2", "1.5"),
        ("-1/3", "-1/3"),
        ("2/6", "1/3"),
        ("5/0", "5/0"),
        ("5 and 6", "5 and 6"),
        ("12,34", "12,34"),
        ("1/2/2020", "1/2/2020"),
        ("2:30", "2:30"),
        ("  The  Nile. ", "the nile"),
        ("", ""),
    ],
)
def test_normalise(answer: str, canonical: str) -> None:
    assert normalise(answer) == canonical


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48/2 = 24 clips\nthen 48+24 = 72 clips.", "72"),
        ("from 3-5", "5"),
        ("so it is -5", "-5"),
        ("- 5 apples", "-5"),
        ("costs $1,080.50 in all", "1080.5"),
        ("no number", None),
        ("7 then 5/0", None),
        ("7 then 2,5", None),
        ("9" * 5000, None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_extract_of_a_well_formed_completion() -> None:
    found = extract("<think>2 + 3 = 5\nSo 5.</think><answer> $5 </answer>")
    assert (found.strict, found.flexible, found.well_formed) == ("$5", "5", True)
    assert (found.thinking, found.answer) == ("2 + 3 = 5\nSo 5.", " $5 ")


@pytest.mark.parametrize(
    ("completion", "flexible", "thinking", "answer"),
    [
        ("", None, "", ""),
        ("<think>2 + 3 = 5", "5", "2 + 3 = 5", ""),
        ("<think>2 + 3 = 5</think>", "5", "2 + 3 = 5", ""),
        ("<think>2</think><answer>5", "5", "2", "5"),
        ("<think>2</think><answer>5</answer>.", "5", "2", "5"),
        (" <think>2</think><answer>5</answer>", "5", "2", "5"),
        ("<think>2</think> <answer>5</answer>", "5", "2", "5"),
        ("<think>2<answer>5</answer></think>", "5", "2", "5"),
        ("<answer>5</answer><think>2</think>", "2", "2", "5"),
        ("<think>2</think><answer>5</answer><answer>6</answer>", "6", "2", "5"),
        ("<think><think>2</think><answer>5</answer>", "5", "", "5"),
        ("<think>2</think></think><answer>5</answer>", "5", "2", "5"),
        ("<think>a</think><answer>Nile", "Nile", "a", "Nile"),
    ],
)
def test_anything_else_is_malformed(completion: str, flexible: str | None, thinking: str, answer: str) -> None:
    found = extract(completion)
    assert (found.strict, found.well_formed) == (None, False)
    assert (found.flexible, found.thinking, found.answer) == (flexible, thinking, answer)


def test_a_blank_answer_is_well_formed_but_no_answer() -> None:
    found = extract("<think>4</think><answer> \n</answer>")
    assert found.well_formed
    assert found.strict is None
    assert found.flexible == "4"


def test_is_correct_compares_numbers_not_spellings() -> None:
    assert is_correct("5.0", "5")
    assert is_correct("$1,000", "1000")
    assert is_correct("1/2", "0.5")
    assert is_correct("The Nile.", "the nile")
    assert is_correct("5 apples", "She has 5 apples")
    assert not is_correct(None, "5")
    assert not is_correct("", "5")
    assert not is_correct("-5", "5")
    assert not is_correct("0.33", "1/3")
    assert not is_correct("51", "5")
    assert not is_correct("5 or 6", "5")


@given(MODEL_TEXT)
def test_no_text_makes_grading_fail(text: str) -> None:
    found = extract(text)
    assert found.well_formed == (
        all(text.count(tag) == 1 for tag in TAGS)
        and text.startswith("<think>")
        and "</think><answer>" in text
        and text.endswith("</answer>")
    )
    assert found.strict is None or (found.well_formed and found.strict == found.answer.strip())
    assert normalise(normalise(text)) == normalise(text), "the canonical form of a canonical form is itself"
    assert is_correct(text, text)
    if found.flexible is not None:
        is_correct(found.flexible, text)


@given(thinking=st.text(alphabet="ab1<>/ \n"), answer=st.text(alphabet="ab1<>/ \n"))
def test_what_is_put_between_tags_is_found_again(thinking: str, answer: str) -> None:
    found = extract(f"<think>{thinking}</think><answer>{answer}</answer>")
    assert (found.well_formed, found.thinking, found.answer) == (True, thinking, answer)


@given(numerator=st.integers(-(10**12), 10**12), denominator=st.integers(1, 10**6))
def test_a_fraction_is_written_one_way_and_exactly(numerator: int, denominator: int) -> None:
    canonical = normalise(f"{numerator}/{denominator}")
    assert Fraction(canonical) == Fraction(numerator, denominator)
    assert canonical == normalise(f"the answer is {numerator * 7}/{denominator * 7}!")
    assert ("/" in canonical) == (not _ends(Fraction(numerator, denominator).denominator))


@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_commas_and_trailing_zeros_do_not_matter(number: int, zeros: int) -> None:
    assert normalise(f"{number:,}." + "0" * zeros) == str(number) == normalise(f"${number}")


def _ends(denominator: int) -> bool:
    return 10**40 % denominator == 0
