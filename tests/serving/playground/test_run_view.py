"""What is said of a stage, from what its run has left so far."""

from __future__ import annotations

import pytest

from nanogpt_edit.serving.playground.run_view import state_of


@pytest.mark.parametrize(
    ("made", "measured", "begun", "running", "its_turn", "state"),
    [
        (False, False, False, True, False, "to come"),
        (False, False, True, True, True, "under way"),
        (False, False, False, True, True, "under way"),  # an edit: no log tells of it
        (True, False, True, True, True, "being measured"),
        (True, True, True, True, True, "done"),
        (False, False, True, False, True, "stopped"),
        (False, False, False, False, True, "to come"),
        (True, False, True, False, True, "done"),  # the same command measures it
    ],
)
def test_a_stage_is_where_its_files_say(
    made: bool, measured: bool, begun: bool, running: bool, its_turn: bool, state: str
) -> None:
    assert state_of(made=made, measured=measured, begun=begun, running=running, its_turn=its_turn) == state
