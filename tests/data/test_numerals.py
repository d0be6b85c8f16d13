"""Numbers as people and models write them: read exactly where there is one way to, else not at all."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.data.numerals import LONGEST, number, numbers, written

MINUS_SIGNS = "-‐‑‒–—−－﹣"

READ = {
    # signs
    **dict.fromkeys([f"{minus}5" for minus in MINUS_SIGNS], "-5"),
    **dict.fromkeys([f"{minus} 5 apples" for minus in MINUS_SIGNS], "-5"),
    "x = - 5": "-5",
    "it is -5": "-5",
    "$-5": "-5",
    "-$5": "-5",
    "(−5)": "-5",
    "+5": "5",
    "is +5": "5",
    "-½": "-1/2",
    # fractions
    **dict.fromkeys(["3/4", "3 / 4", "3⁄4", "3∕4", "¾", r"\frac{3}{4}", r"\dfrac34", r"$\tfrac{ 3 }{4}$"], "3/4"),
    **dict.fromkeys(["2½", "2 ½", "2 1/2", r"2\frac{1}{2}", "２½", r"\boxed{2\frac12}", "5/2"], "5/2"),
    r"-\frac{1}{3}": "-1/3",
    r"\frac{-1}{3}": "-1/3",
    "x is -⅓": "-1/3",
    "1/2 million": "500000",
    # thousands
    **dict.fromkeys(
        ["1,234", "1 234", "1\u00a0234", "1\u2009234", "1\u202f234", "1'234", "1’234", r"\boxed{1{,}234}", r"1\,234"],
        "1234",
    ),
    "₹1,23,456": "123456",
    "12,34,56,789": "123456789",
    "$1,234,567.80": "12345678/10",
    "１，２３４": "1234",
    # powers, exponents, scales
    "10²": "100",
    "10^2": "100",
    "2^-1": "1/2",
    "10⁻³": "1/1000",
    "2¹⁰": "1024",
    "1e3": "1000",
    "1.5E-1": "3/20",
    "5 × 10^3": "5000",
    r"2 \times 10^{3}": "2000",
    "3*10^2": "300",
    "5k": "5000",
    "2.5K": "2500",
    "$5M": "5000000",
    "3B": "3000000000",
    "2.5 million": "2500000",
    "3 lakhs": "300000",
    "5 hundred thousand": "500000",
    "2-million": "2000000",
    "1.2bn": "1200000000",
    "2½ thousand": "2500",
    # what stands around a number
    "50%": "50",
    r"50\%": "50",
    "$5": "5",
    "5 €": "5",
    "Rs.500": "500",
    "72.": "72",
    "5 apples.": "5",
    "**5**": "5",
    "5m": "5",
    "25 m²": "25",
    "25 cm^2": "25",
    r"5\text{ ft}^3": "5",
    "90°": "90",
    r"90^\circ": "90",
    "$5/hour": "5",
    "<b>5</b>": "5",
    "_5_": "5",
    "`5`": "5",
    "≈ 5": "5",
    "=> 5": "5",
    "5-year": "5",
    "a) 5": "5",
    "5!": "5",
    "5kg": "5",
    # digits of other scripts, and what nobody sees
    "５": "5",
    "٣٫٥": "7/2",
    "१२": "12",
    "\u200b5\u200e": "5",
    "５．５": "11/2",
    "৳৫": "5",
}

NOT_READ = [
    *("2,5", "0,125", "12,34", "1,2345", "1,23,45", "1000,000", "1.234,56", "1,000 000", "2;5", "1 0000"),
    *("2:30", "1/2/2020", "5/0", "1.2.3", "5'6", "1_000", "2 5/4", "1.5/2", "3, 4", "5 and 6", "3-5", "1e5 or 2"),
    *(
        "x + 5",
        "x+5",
        "5 + x",
        "5*x",
        "x*5",
        "5 - x",
        "x - 5",
        "x-5",
        "x/5",
        "-(5)",
        "5x",
        "2π",
        "√9",
        r"\sqrt{9}",
        "5y",
    ),
    *("x^2", "5^x", r"\frac{x+1}{2}", "> 5", "x<5", "≥5", "±5", "2 pi", "log 5", "0^-1", "2^1000", "9^99^9"),
    *("1e999999999", "1e-999999999", "10^999999999", "9" * (LONGEST + 1), "five", "", "-", "½ or ¼", "1/" + "9" * 50),
]


@pytest.mark.parametrize(("text", "value"), READ.items())
def test_one_number_is_read_exactly(text: str, value: str) -> None:
    assert number(text) == Fraction(value)


@pytest.mark.parametrize("text", NOT_READ)
def test_what_can_be_read_in_two_ways_or_is_computed_has_no_value(text: str) -> None:
    assert number(text) is None


def test_every_numeral_of_a_text_is_found_and_none_is_part_of_another() -> None:
    assert numbers("48/2 = 24 clips, then 2,5 and 1,000.50 (3-5)") == [24, 24, None, Fraction("1000.5"), 3, 5]
    assert numbers("no number") == []
    assert numbers("5\n100 and 5 100") == [5, 100, 5100]


@given(st.integers(-(10**18), 10**18), st.integers(1, 10**6))
def test_what_is_written_is_read_again(top: int, bottom: int) -> None:
    value = Fraction(top, bottom)
    text = written(value)
    assert number(text) == value == Fraction(text)
    assert number(f"the answer is {text}!") == value
    if value > 0:
        assert number(f"—{text}") == -value


@given(st.integers(10**4, 10**15), st.sampled_from(",'  \u202f"), st.integers(0, 6))
def test_thousands_separators_and_trailing_zeros_do_not_matter(value: int, separator: str, zeros: int) -> None:
    assert number(f"{value:,}".replace(",", separator) + "." + "0" * zeros) == value


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_a_comma_that_is_no_thousands_comma_is_never_read(left: int, right: int) -> None:
    if not (1 <= left <= 999 and len(str(right)) == 3):
        assert number(f"{left},{right}") is None
        assert numbers(f"{left},{right}") == [None]


@given(st.text(alphabet="0123456789,.' /^-ekx*·½²{}\\frac()$_:٣千+m\n", max_size=60))
def test_any_text_is_read_without_an_error(text: str) -> None:
    value = number(text)
    assert value is None or (len(numbers(text)) == 1 and number(written(value)) in (value, None))


@pytest.mark.parametrize(
    "piece",
    ["9", "9,", "1,111", "1 111", "1,11", "9/", "1 1/", "9.", "-", "- ", "9^", "9e9", "\\frac", "{", "½", "9 k", "*9"],
)
def test_no_text_takes_long(piece: str) -> None:
    started = time.process_time()
    numbers(piece * 5_000)
    number(piece * 5_000)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "text", ["not 5", "half of 5", "5 and a half", "5 dozen", "twice 5", "a third of 5", "x minus 5", "5 plus x"]
)
def test_words_that_compute_name_another_number(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize("text", ["minus 5", "negative 5", "it is negative 5", "Minus 5 apples", "negative $5"])
def test_a_sign_may_be_a_word(text: str) -> None:
    assert number(text) == -5
