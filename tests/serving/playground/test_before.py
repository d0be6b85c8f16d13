"""What a model says before an edit is measured beside the edit, once, and whoever asks early waits for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.terminal import Listener
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.playground import before as module
from nanogpt_edit.serving.playground.before import Before
from nanogpt_edit.serving.playground.elsewhere import Unrelated
from nanogpt_edit.serving.playground.fact_states import states_of

FACTS = (Fact("The capital of France", "France", target_new="Tom", target_true="Paris"),)


def nothing(model: GPT, facts: Sequence[Fact]) -> Unrelated:
    return Unrelated((), torch.zeros(1, 5, dtype=torch.long))


def deaf(phase: str, done: int, of: int | None) -> None:
    pass


def test_it_is_measured_beside_once_and_waited_for(speaking_gpt: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, threads, heard = threading.Event(), list[str](), list[str]()

    def slowly(model: GPT, facts: Sequence[Fact]) -> object:
        threads.append(threading.current_thread().name)
        assert go_on.wait(20)
        return states_of(model, facts)

    def hear(phase: str, done: int, of: int | None) -> None:
        heard.append(phase)
        go_on.set()

    monkeypatch.setattr(module, "states_of", slowly)
    before = Before(speaking_gpt, FACTS, nothing)
    with before.measured_beside():
        pass  # the edit is found at once
    assert before.states(hear) == states_of(speaking_gpt, FACTS)
    assert before.states(hear) is before.states(hear) and heard
    assert before.witness(deaf) is before.witness(deaf)
    assert threads == ["before an edit"]


def test_an_edit_that_fails_ends_it(speaking_gpt: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    failed, ended = threading.Event(), threading.Event()

    def until_given_up(model: GPT, facts: Sequence[Fact]) -> object:
        assert failed.wait(20)
        try:
            return states_of(model, facts)
        finally:
            ended.set()

    monkeypatch.setattr(module, "states_of", until_given_up)
    before = Before(speaking_gpt, FACTS, nothing)
    with pytest.raises(UserError), before.measured_beside():
        raise UserError("no such fact.")
    failed.set()
    assert ended.wait(20)
    assert before._states is None  # it was ended at its first step


def test_who_asks_is_told_what_was_wrong(speaking_gpt: GPT) -> None:
    def wrong(model: GPT, facts: Sequence[Fact]) -> Unrelated:
        raise UserError("the run's recipe cannot be read.")

    before = Before(speaking_gpt, FACTS, wrong)
    with before.measured_beside():
        pass
    tell: Listener = deaf
    assert before.states(tell) == states_of(speaking_gpt, FACTS)
    with pytest.raises(UserError, match="cannot be read"):
        before.witness(tell)
