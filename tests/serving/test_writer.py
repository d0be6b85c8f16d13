"""The loop that writes: when rows begin."""

from __future__ import annotations

import pytest
import torch
from scheduler_clients import PROMPT, request
from serving_run import small_model

from nanogpt_edit.serving import writer
from nanogpt_edit.serving.messages import key_of
from nanogpt_edit.serving.room import Room
from nanogpt_edit.serving.writer import Rows


@pytest.mark.parametrize(("running", "come", "steps"), [(0, 1, 0), (8, 1, 0), (16, 1, 3), (16, 2, 0), (31, 3, 3)])
@torch.inference_mode()
def test_rows_begin_together_where_many_run(running: int, come: int, steps: int) -> None:
    """An eighth of those that run at once, fewer after three steps; no more than there are slots."""
    rows = Rows(small_model(), Room(rows=32))
    for number in range(running + come):
        if number == running:
            list(rows.turn())
        rows.waiting.append(request(number, tokens=50))
    for _ in range(steps):
        list(rows.turn())
        assert rows.batch is not None and rows.batch.rows == running
    list(rows.turn())
    assert rows.batch is not None and rows.batch.rows == running + min(come, 32 - running)


@torch.inference_mode()
def test_no_more_is_read_between_two_steps_than_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PROMPT_TOKENS", 2 * len(PROMPT))
    rows = Rows(small_model(), Room(rows=8))
    rows.waiting.extend(request(number, tokens=50) for number in range(5))
    running = []
    for _ in range(3):
        list(rows.turn())
        assert rows.batch is not None
        running.append(rows.batch.rows)
    assert running == [2, 4, 5]
    monkeypatch.setattr(writer, "PROMPT_TOKENS", 1)
    rows.waiting.append(request(5, tokens=50))
    list(rows.turn())
    assert rows.batch.rows == 6


@torch.inference_mode()
def test_rows_wait_for_memory_and_all_begin_in_the_end() -> None:
    """With memory for nothing they are written one by one."""
    rows = Rows(small_model(), Room(rows=4, cache_bytes=1))
    rows.waiting.extend(request(number, tokens=5) for number in range(3))
    finished = []
    while rows.at_work:
        for tokens in rows.turn():
            finished += [token.key[0] for token in tokens if token.finish_reason]
        assert rows.batch is not None and rows.batch.rows <= 1
    assert finished == [0, 1, 2]


@torch.inference_mode()
def test_a_row_is_taken_out_where_it_runs_and_where_it_waits() -> None:
    rows = Rows(small_model(), Room(rows=1))
    requests = [request(number, tokens=5) for number in range(3)]
    rows.waiting.extend(requests)
    list(rows.turn())
    rows.cancel([key_of(requests[0]), key_of(requests[1])])
    assert [*rows.waiting] == [requests[2]] and rows.batch is not None and rows.batch.rows == 0
    written = set()
    while rows.at_work:
        written |= {token.key for tokens in rows.turn() for token in tokens}
    assert written == {key_of(requests[2])}
