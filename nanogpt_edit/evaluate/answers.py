"""What a completion answers, and whether that is right. Nothing here is ever evaluated; numbers are read, not run.

Two ways of reading, as in lm-evaluation-harness: *strict* takes the text between the answer tags of a well-formed
completion, *flexible* takes the last number anywhere. Unlike there, a completion without an answer gives None, never a
placeholder that could win a vote.

A number may carry a sign, a currency, thousands commas, decimals, a fraction ("3/4", "1 1/2"), a percent sign or a
unit: "$1,000.00" is "1000", "72." is "72", "5 apples" is "5", "50%" is "50" (GSM8K's golds drop the sign). A text with
several numbers is read as what follows its last "=", or else compared as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)\]])-)?"  # "3-5" and "(2)-5" subtract; elsewhere a minus before a digit is a sign
    r"(?:(?:(?P<whole>[0-9]{1,9})\s)?(?<![0-9./])(?P<top>[0-9]{1,15})/(?P<bottom>[0-9]{1,15})(?![0-9/])"
    rf"|(?P<decimal>{WHOLE}(?:\.[0-9]+)?|\.[0-9]+))",
    re.ASCII,
)
# Currencies and LaTeX escapes go, every minus becomes "-", every space " ".
CLEAN = str.maketrans({**dict.fromkeys("$€£¥₹\\"), "−": "-", "–": "-", "\u00a0": " ", "\u202f": " "})
LONGEST_NUMBER = 100  # characters; anything longer is not taken for a number


@dataclass(frozen=True)
class Extracted:
    """What was found in one completion.

    Example, of "<think>2 + 3 = 5</think><answer>5</answer>":
    Extracted(strict="5", flexible="5", well_formed=True, thinking="2 + 3 = 5", answer="5")
    """

    strict: str | None  # the answer of a well-formed completion; None when malformed or blank
    flexible: str | None  # the last number anywhere, else the text of an answer tag, else None
    well_formed: bool  # exactly <think>…</think><answer>…</answer>, each once, nothing outside
    thinking: str  # text after <think>, up to where it ends; "" without the tag
    answer: str  # text after <answer>, up to where it ends; "" without the tag


def extract(completion_text: str) -> Extracted:
    """Read a completion (which begins at `<think>`, without the prompt). Never raises."""
    thinking, answer = _after(completion_text, "<think>"), _after(completion_text, "<answer>")
    # Neither part holds a tag, so equality means: each tag once, in order, nothing outside.
    well_formed = completion_text == f"<think>{thinking}</think><answer>{answer}</answer>"
    text = answer.strip() or None
    number = last_number(completion_text)
    return Extracted(
        strict=text if well_formed else None,
        flexible=text if number is None else number,
        well_formed=well_formed,
        thinking=thinking,
        answer=answer,
    )


def is_correct(extracted_answer: str | None, gold: str) -> bool:
    """True when both name the same number, or are the same text up to case, space and a final period."""
    return extracted_answer is not None and normalise(extracted_answer) == normalise(gold)


def normalise(answer: str) -> str:
    """The canonical form of an answer: two answers are the same exactly when theirs are equal. Never raises.

    A number is a reduced decimal ("0.5") where it has one, else a fraction ("1/3"); text is lower case.
    """
    text = " ".join(answer.translate(CLEAN).lower().split())
    for candidate in (text, text.rpartition("=")[2]):
        numbers = _numbers(candidate)
        if len(numbers) == 1:
            return _canonical(numbers[0])
    return text.rstrip(" .")


def last_number(text: str) -> str | None:
    """The last number in `text` in canonical form, or None."""
    numbers = _numbers(text.translate(CLEAN))
    return _canonical(numbers[-1]) if numbers else None


def _after(text: str, tag: str) -> str:
    """Text after the first `tag`, up to the next of any tags."""
    _, present, rest = text.partition(tag)
    ends = [rest.find(end) for end in TAGS] if present else []
    return rest[: min((end for end in ends if end >= 0), default=len(rest))] if present else ""


def _numbers(text: str) -> list[re.Match[str]]:
    return [match for match in NUMBER.finditer(text) if len(match[0]) <= LONGEST_NUMBER and not _divides_by_zero(match)]


def _divides_by_zero(match: re.Match[str]) -> bool:
    return match["bottom"] is not None and int(match["bottom"]) == 0


def _canonical(match: re.Match[str]) -> str:
    if match["decimal"] is not None:
        magnitude = Fraction(match["decimal"].replace(",", ""))
    else:
        magnitude = int(match["whole"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))
    sign = "-" if match["sign"] and magnitude else ""
    places = _decimal_places(magnitude.denominator)
    if places is None:
        return f"{sign}{magnitude.numerator}/{magnitude.denominator}"
    digits = str(magnitude.numerator * 10**places // magnitude.denominator).zfill(places + 1)
    return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else sign + digits


def _decimal_places(denominator: int) -> int | None:
    """Decimals that write 1/denominator exactly; None when it never ends (a prime factor other than 2 and 5)."""
    powers = {2: 0, 5: 0}
    for prime in powers:
        while denominator % prime == 0:
            denominator //= prime
            powers[prime] += 1
    return max(powers.values()) if denominator == 1 else None
