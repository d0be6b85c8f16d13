"""The form of a reasoned answer: what is written is read, and nothing else is well-formed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.common.reasoning import TAGS, Parsed, parse, render, split_completion


def test_a_completion_is_split_at_its_tags() -> None:
    parts = split_completion("a<think>b\nc</think>d<answer>5</answer>")
    assert [(part.kind, part.text) for part in parts] == [
        ("outside", "a"), ("tag", "<think>"), ("think", "b\nc"), ("tag", "</think>"), ("outside", "d"),
        ("tag", "<answer>"), ("answer", "5"), ("tag", "</answer>"),
    ]  # fmt: skip


@given(st.lists(st.sampled_from([*TAGS, "x", "<b>", "\n"])))
def test_splitting_loses_nothing(pieces: list[str]) -> None:
    assert "".join(part.text for part in split_completion("".join(pieces))) == "".join(pieces)


UNTAGGED = st.text().filter(lambda text: not any(tag in text for tag in TAGS))


@given(UNTAGGED, UNTAGGED)
def test_what_is_rendered_is_parsed(thinking: str, answer: str) -> None:
    assert parse(render(thinking, answer)) == Parsed(thinking, answer, well_formed=True)


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("", "", ""),
        ("<think>a", "a", ""),
        ("<think>a</think><answer>5", "a", "5"),
        ("<answer>5</answer><think>a</think>", "a", "5"),
        (" <think>a</think><answer>5</answer>", "a", "5"),
        ("<think>a</think> <answer>5</answer>", "a", "5"),
        ("<think>a</think><answer>5</answer>.", "a", "5"),
        ("<think>a<think>b</think><answer>5</answer>", "a", "5"),
        ("<think>a</think><answer>5</answer><answer>6</answer>", "a", "5"),
        ("<Think>a</think><answer>5</answer>", "", "5"),
    ],
)
def test_what_is_not_written_so_is_read_and_not_well_formed(text: str, thinking: str, answer: str) -> None:
    assert parse(text) == Parsed(thinking, answer, well_formed=False)


@given(st.lists(st.sampled_from([*TAGS, "x"])))
def test_a_well_formed_completion_has_the_parts_it_was_rendered_from(pieces: list[str]) -> None:
    kinds = [part.kind for part in split_completion("".join(pieces)) if part.kind != "answer"]
    parsed = parse("".join(pieces))
    if parsed.well_formed:
        assert kinds == ["tag", *(["think"] if parsed.thinking else []), "tag", "tag", "tag"]
