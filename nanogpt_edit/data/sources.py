"""What an argument `facts` or `problems` of a public function may be: a source to read, one record, or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.fact_files import read_facts
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.data.problems import Problem, read_problems

Facts = str | Path | Fact | Sequence[Fact]  # a source of `read_facts`, one, or several
Problems = str | Path | Problem | Sequence[Problem]  # a source of `read_problems`, one, or several


def facts_of(facts: Facts) -> tuple[Fact, ...]:
    """The facts of an argument. Raises UserError when there are none."""
    if isinstance(facts, str | Path):
        return read_facts(facts)
    found = (facts,) if isinstance(facts, Fact) else tuple(facts)
    if not found:
        raise UserError("facts is empty; give at least one fact.")
    return found


def problems_of(problems: Problems) -> tuple[Problem, ...]:
    """The problems of an argument. Raises UserError when there are none."""
    if isinstance(problems, str | Path):
        return read_problems(problems)
    found = (problems,) if isinstance(problems, Problem) else tuple(problems)
    if not found:
        raise UserError("problems is empty; give at least one problem.")
    return found
