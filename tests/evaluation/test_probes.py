"""What counts as arithmetic where none was asked for."""

from __future__ import annotations

import pytest
from evaluate_stand_ins import graded

from nanogpt_edit.evaluation.probes import is_arithmetic, probe_metrics


@pytest.mark.parametrize(
    ("text", "arithmetic"),
    [
        ("Paris is a city.", False),
        ("2 + 2", True),
        ("So it is = 4", True),
        ("<think></think><answer>42</answer>", True),
        ("<think></think><answer>Paris</answer>", False),
        ("<think>6 / 2</think><answer>Paris</answer>", True),
        ("It has 20 districts.", False),
        ("", False),
    ],
)
def test_what_counts_as_arithmetic(text: str, arithmetic: bool) -> None:
    assert is_arithmetic(text) == arithmetic


def test_probes_are_averaged_over_prompts() -> None:
    records = [graded(0, 0, None, text="blue"), graded(0, 1, None, text="1+1"), graded(1, 0, None, text="sea")]
    records += [graded(1, 1, None, text="sand")]
    interval = probe_metrics(records)["non_arithmetic"]
    assert (interval.value, interval.n) == (0.75, 2)
