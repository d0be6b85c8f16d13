"""What a completion answers, and whether that is right. Nothing here is ever evaluated; numbers are read, not run.

Two ways of reading, as in lm-evaluation-harness: *strict* takes the text between the answer tags of a well-formed
completion, *flexible* takes the last number anywhere. Unlike there, a completion without an answer gives None, never a
placeholder that could win a vote.

What a number may look like is in `data/numerals.py`: "$1,000.00" is "1000", "72." is "72", "5 apples" is "5", "50%" is
"50" (GSM8K's golds drop the sign). A text with several numbers is read as what follows its last "=", or else compared
as text; what can be read in two ways ("2,5") is no number, and so never right by accident.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nanogpt_edit.common.reasoning import TAGS, parse
from nanogpt_edit.data.numerals import LONGEST, number, numbers, written

SEGMENT = re.compile("|".join((*TAGS, "\n")))  # no numeral reaches over one of these


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
    parsed = parse(completion_text)
    text = parsed.answer.strip() or None
    last = last_number(completion_text)
    return Extracted(
        strict=text if parsed.well_formed else None,
        flexible=text if last is None else last,
        well_formed=parsed.well_formed,
        thinking=parsed.thinking,
        answer=parsed.answer,
    )


def is_correct(extracted_answer: str | None, gold: str) -> bool:
    """True when both name the same number, or are the same text up to case, space and a final period."""
    return extracted_answer is not None and normalise(extracted_answer) == normalise(gold)


def normalise(answer: str) -> str:
    """The canonical form of an answer: two answers are the same exactly when theirs are equal. Never raises.

    A number is a reduced decimal ("0.5") where it has one, else a fraction ("1/3"); text is lower case.
    """
    if _is_plain(answer):
        return answer.lstrip("0") or "0"
    for candidate in (answer, answer.rpartition("=")[2]):
        value = number(candidate)
        if value is not None:
            return written(value)
    return " ".join(answer.lower().split()).rstrip(" .")


def last_number(text: str) -> str | None:
    """The last number in `text` in canonical form; None without one, and where it cannot be read in one way."""
    for segment in reversed(SEGMENT.split(text)):
        if _is_plain(segment):
            return segment.lstrip("0") or "0"
        found = numbers(segment)
        if found:
            return None if found[-1] is None else written(found[-1])
    return None


def _is_plain(text: str) -> bool:
    """Nothing but digits, as nearly every answer is: read in a fraction of the time."""
    return text.isascii() and text.isdigit() and len(text) <= LONGEST
