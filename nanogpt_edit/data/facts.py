"""A fact to be changed, and where its subject sits in the tokens of its prompt.

A subject is looked up in characters, then turned into tokens by the tokenizer's spans, so that a subject that is part
of a word, follows no space or is written in any script is found where a person sees it. Three lookups are tried in
turn and the one that succeeded is kept: exactly as written; ignoring case (and how accents are composed); the longest
run of whole words that subject and prompt share. The edit sits on the subject's *last* token, so such a run must end
with the subject's last word, unless partial subjects are allowed.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from nanogpt_edit.common.errors import UserError, quoted
from nanogpt_edit.common.records import Answering, check_fields
from nanogpt_edit.model.tokenizer import Tokenizer

Lookup = Literal["exact", "ignoring case", "shared words"]

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Neighbour(metaclass=Answering):
    """A prompt near the fact whose answer must not change: `Neighbour("The capital of Libya is", "Tripoli")`."""

    prompt: str
    target_true: str

    def __post_init__(self) -> None:
        check_fields(self)


AskedKind = Literal[
    "question", "negation", "claim", "alias", "reversed", "one_hop", "about", "same_subject", "attribute"
]
"""What a further prompt of a fact asks for.

question: a question in words, without "Q:" and "A:".
negation: the fact denied ("It is not true that the capital of Egypt is"), where its answer must not be said.
claim: true or false, the answer is "True" or "False".
alias: the subject under another name.
reversed: the subject, asked for by the answer.
one_hop: what follows from the answer.
about: a text about the subject in which the new answer may come up.
same_subject: another fact of the subject, which must stay.
attribute: another subject that has the new answer already, which must stay.
"""


@dataclass(frozen=True)
class Asked(metaclass=Answering):
    """A further prompt of a fact: `Asked("question", "What is the capital of Egypt?", "Alexandria", "Cairo")`."""

    kind: AskedKind
    prompt: str
    target_new: str
    """What is right once the fact is changed (of a negation: what is not)."""
    target_true: str = ""
    """What was right before it; empty where nobody says."""

    def __post_init__(self) -> None:
        check_fields(self)
        for field in ("prompt", "target_new"):
            if not getattr(self, field).strip():
                raise UserError(f"the {field} of a prompt of the kind {self.kind} is empty; fill it in.")


@dataclass(frozen=True)
class Fact(metaclass=Answering):
    """One change. `Fact("The capital of Egypt is", "Egypt", target_new="Alexandria", target_true="Cairo")`."""

    prompt: str
    """Text that ends right before the answer."""
    subject: str
    """What the fact is about; it occurs in the prompt."""
    target_new: str
    """The answer after the edit, without a leading space."""
    target_true: str
    """The answer before it."""
    paraphrases: tuple[str, ...] = ()
    """Other prompts for the same answer that it is measured with, and never made with."""
    neighbourhood: tuple[Neighbour, ...] = ()
    """Prompts about other subjects, whose answers must stay."""
    rewordings: tuple[str, ...] = ()
    """Other prompts for the same answer that the edit is made with; they carry it to ways of asking it has not seen."""
    relation: str = ""
    id: str = ""
    asked: tuple[Asked, ...] = ()
    """Further prompts that it is measured with, by what they ask for."""

    def __post_init__(self) -> None:
        check_fields(self)
        texts = {"prompt": self.prompt, "subject": self.subject, "target_new": self.target_new}
        texts |= {f"paraphrases[{i}]": text for i, text in enumerate(self.paraphrases)}
        texts |= {f"rewordings[{i}]": text for i, text in enumerate(self.rewordings)}
        texts |= {f"neighbourhood[{i}].prompt": each.prompt for i, each in enumerate(self.neighbourhood)}
        for field, text in texts.items():
            if not text.strip():
                about = f"{quoted(self.prompt)}, subject {quoted(self.subject)}"
                raise UserError(f"a fact's {field} is empty: {about}; fill it in.")


@dataclass(frozen=True)
class SubjectSpan:
    """Where a subject stands in a prompt: characters [start, end), and how it was found."""

    start: int
    end: int
    lookup: Lookup


@dataclass(frozen=True)
class SubjectTokens:
    """A prompt as tokens, with the subject's: `first` to `last` inclusive index `token_ids`."""

    token_ids: tuple[int, ...]
    first: int
    last: int
    span: SubjectSpan


def locate_subject(
    prompt: str, subject: str, tokenizer: Tokenizer, *, allow_partial: bool = False, prefix: str = ""
) -> SubjectTokens:
    """Tokens of `prefix + prompt` and the subject's first and last among them (see `find_subject`).

    The last token is the last one that overlaps the subject, even when it also holds what follows.
    """
    span = find_subject(prompt, subject, allow_partial=allow_partial)
    encoded = tokenizer.encode_with_spans(prefix + prompt)
    start, end = span.start + len(prefix), span.end + len(prefix)
    touching = [i for i, (a, b) in enumerate(encoded.spans) if a < end and b > start]
    if not touching:
        raise UserError(
            f"no token of {quoted(prompt)} holds its subject {quoted(subject)}; the tokenizer drops these characters."
        )
    return SubjectTokens(encoded.token_ids, first=touching[0], last=touching[-1], span=span)


def find_subject(prompt: str, subject: str, *, allow_partial: bool = False) -> SubjectSpan:
    """Where `subject` stands in `prompt`; of several places, whole words before parts of words, then the last one.

    The last place, because only its tokens have seen all that the prompt says of the subject. Raises UserError with
    the prompt, the subject and the nearest words when it is not found; `allow_partial` accepts any shared run of words.
    """
    wanted = subject.strip()
    exact = _occurrences(prompt, wanted)
    if exact:
        return SubjectSpan(*_best(prompt, exact), lookup="exact")
    folded_prompt, characters = _fold(prompt)
    folded_subject, _ = _fold(wanted)
    folded = [(characters[a], characters[b - 1] + 1) for a, b in _occurrences(folded_prompt, folded_subject)]
    if folded:
        return SubjectSpan(*_best(prompt, folded), lookup="ignoring case")
    shared = _longest_shared_run(prompt, wanted, to_the_end=not allow_partial)
    if shared is not None:
        return SubjectSpan(*shared, lookup="shared words")
    raise UserError(
        f"subject {quoted(subject)} is not in the prompt {quoted(prompt)}; nearest words: "
        f"{quoted(_nearest_words(prompt, wanted))}. "
        "Fix the subject; an edit may also allow a part of it (edit.allow_partial_subject)."
    )


def states_old_answer(text: str, fact: Fact) -> bool:
    """Does `text` name the fact's subject and its old answer, in any capitals?

    Such text speaks against the edit; it is left out of what the edit must not disturb.
    """
    folded = text.casefold()
    return all(part and part.casefold() in folded for part in (fact.subject.strip(), fact.target_true.strip()))


def _occurrences(text: str, wanted: str) -> list[tuple[int, int]]:
    """All places of `wanted`, overlapping ones too."""
    if not wanted:
        return []
    places, at = [], text.find(wanted)
    while at >= 0:
        places.append((at, at + len(wanted)))
        at = text.find(wanted, at + 1)
    return places


def _best(text: str, places: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Whole words first, then the last."""
    return max(places, key=lambda place: (_whole_words(text, *place), place))


def _whole_words(text: str, start: int, end: int) -> bool:
    starts_inside = start > 0 and _is_word(text[start - 1]) and _is_word(text[start])
    ends_inside = end < len(text) and _is_word(text[end - 1]) and _is_word(text[end])
    return not starts_inside and not ends_inside


def _is_word(character: str) -> bool:
    return WORD.match(character) is not None


def _fold(text: str) -> tuple[str, list[int]]:
    """`text` without case and with accents apart, and for each of its characters the one of `text` it comes from."""
    pieces: list[str] = []
    origin: list[int] = []
    for index, character in enumerate(text):
        piece = unicodedata.normalize("NFD", unicodedata.normalize("NFD", character).casefold())
        pieces.append(piece)
        origin.extend([index] * len(piece))
    return "".join(pieces), origin


def _words(text: str) -> list[tuple[str, int, int]]:
    return [(_fold(match.group())[0], match.start(), match.end()) for match in WORD.finditer(text)]


def _longest_shared_run(prompt: str, subject: str, *, to_the_end: bool) -> tuple[int, int] | None:
    """The longest run of whole words in both, in characters of `prompt`; of equally long ones the last."""
    in_prompt, in_subject = _words(prompt), [word for word, _, _ in _words(subject)]
    best: tuple[int, int, int] | None = None  # words, first character, end
    for i in range(len(in_prompt)):
        for j in range(len(in_subject)):
            length = 0
            while (
                i + length < len(in_prompt)
                and j + length < len(in_subject)
                and in_prompt[i + length][0] == in_subject[j + length]
            ):
                length += 1
            if length == 0 or (to_the_end and j + length < len(in_subject)):
                continue
            candidate = (length, in_prompt[i][1], in_prompt[i + length - 1][2])
            if best is None or candidate[0] >= best[0]:
                best = candidate
    return None if best is None else best[1:]


def _nearest_words(prompt: str, subject: str) -> str:
    """The run of words of `prompt` most like `subject`, to show to a person."""
    words = _words(prompt)
    runs = [prompt[words[i][1] : words[j][2]] for i, j in _windows(len(words), len(_words(subject)) + 1)]
    wanted = _fold(subject)[0]
    return max(runs, key=lambda run: difflib.SequenceMatcher(None, _fold(run)[0], wanted).ratio(), default="")


def _windows(count: int, longest: int) -> Iterator[tuple[int, int]]:
    for first in range(count):
        for last in range(first, min(first + longest, count)):
            yield first, last
