"""Text that is shown while it is written: the pieces are the whole, and of a stop nothing is seen."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.engine.completion import Fresh, Look, Request
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.serving.openai.texts import Writing, offsets_of

REQUEST = Request(0, 0, 0, (1,), Sampling(), frozenset())


@cache
def vocabulary() -> Tokenizer:
    return Tokenizer.train(["Tom has 3 apples. Ärger mit 5 €! 日本 👩‍🚀"] * 2, vocab_size=300)


def written(token_ids: list[int], stops: list[str]) -> tuple[list[str], Writing]:
    """The pieces, and what was written; the last token is said to be the last."""
    writing = Writing(vocabulary(), stops)
    pieces = []
    for place, token_id in enumerate(token_ids):
        reason = "length" if place == len(token_ids) - 1 else None
        pieces.append(writing.add([Fresh(REQUEST, token_id, Look(-1.0, (), ()), reason)]))
    return pieces, writing


@given(token_ids=st.lists(st.integers(0, 299), min_size=1, max_size=40))
def test_the_pieces_are_the_text(token_ids: list[int]) -> None:
    """Also of bytes that are no characters, and without the token that ends a text."""
    pieces, writing = written(token_ids, [])
    shown = [token_id for token_id in token_ids if token_id not in vocabulary().end_ids]
    assert "".join(pieces) == writing.text == vocabulary().decode(shown)
    assert writing.token_ids == token_ids and len(writing.looks) == len(token_ids)


@given(token_ids=st.lists(st.integers(0, 299), min_size=1, max_size=40), cuts=st.sets(st.integers(1, 39)))
def test_tokens_that_come_together_are_the_same_text(token_ids: list[int], cuts: set[int]) -> None:
    writing, places = Writing(vocabulary()), sorted({0, *cuts, len(token_ids)} & set(range(len(token_ids) + 1)))
    pieces = []
    for begin, end in pairwise(places):
        reasons = ["length" if i == len(token_ids) - 1 else None for i in range(begin, end)]
        fresh = [
            Fresh(REQUEST, token_ids[i], None, reason) for i, reason in zip(range(begin, end), reasons, strict=True)
        ]
        pieces.append(writing.add(fresh))
    one_by_one = written(token_ids, [])[1]
    assert "".join(pieces) == writing.text == one_by_one.text
    assert (writing.token_ids, writing.finish_reason) == (token_ids, "length")
    assert writing.add([Fresh(REQUEST, 1, None, None)]) == ""


@given(text=st.text("ab", max_size=20), stops=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3))
def test_a_text_ends_before_the_stop_that_is_whole_first_and_shows_nothing_of_it(text: str, stops: list[str]) -> None:
    pieces, writing = written(vocabulary().encode(text + "x"), stops)
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    expected = text[: min(found)[1]] if found else text + "x"
    assert "".join(pieces) == writing.text == expected
    assert writing.finish_reason == ("stop" if found else "length")
    assert all(expected.startswith("".join(pieces[:n])) for n in range(len(pieces)))


def test_the_stop_that_is_whole_first_ends_the_text_in_tokens_of_any_size() -> None:
    """What a stop means must not hang on the vocabulary: "baa" holds "a" before it is whole."""
    knows_it = Tokenizer.train(["baa baa baa"] * 2, vocab_size=300)
    for tokenizer, tokens in ((vocabulary(), 3), (knows_it, 1)):
        token_ids, writing = tokenizer.encode("baa"), Writing(tokenizer, ["a", "baa"])
        assert len(token_ids) == tokens
        assert "".join(writing.take([token_id]) for token_id in token_ids) == writing.text == "b"


def test_a_character_is_shown_when_its_last_byte_has_come() -> None:
    whole = vocabulary().encode("x👩y")
    pieces, _ = written(whole, [])
    assert [piece for piece in pieces if piece] == ["x", "👩", "y"]
    assert offsets_of(vocabulary(), whole)[0] == 0


def test_a_text_that_is_cut_ends_where_it_stands() -> None:
    writing = Writing(vocabulary(), ["ab"])
    for token_id in vocabulary().encode("xa"):
        writing.take([token_id])
    assert (writing.text, writing.shown, writing.finish_reason) == ("xa", 1, None)
    assert writing.cut() == "a"
    assert (writing.finish_reason, writing.cut()) == ("length", "")
