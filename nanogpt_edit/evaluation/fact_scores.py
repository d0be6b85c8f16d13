"""What a model says to some facts, as shares with intervals: `measure_facts` summed up for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nanogpt_edit.common.html import table
from nanogpt_edit.common.stats import Interval, share
from nanogpt_edit.evaluation.facts import FactState


@dataclass(frozen=True)
class Scores:
    """What a model says to some facts: shares with 95% intervals over facts. Printed, it is a line for each."""

    facts: tuple[FactState, ...]
    success: Interval
    """The new answer's first token has rank 1."""
    exact: Interval
    """Written freely, the answer is exactly the new one."""
    efficacy: Interval
    """The new answer is more probable than the true one, as is about every second of a model that knows nothing."""
    paraphrase_rank1: Interval | None
    """The new answer's first token has rank 1 on paraphrases; None when no fact has any."""
    paraphrase: Interval | None
    """The new answer is more probable than the true one on paraphrases; None when no fact has any."""
    neighbourhood: Interval | None
    """On neighbours, the true answer is more probable than the new one; None when no fact has any."""

    def __str__(self) -> str:
        return "\n".join(
            f"{name:<36}{found.value:6.1%}  ({found.low:.1%} to {found.high:.1%}, n = {found.n})"
            for name, found in self.shares.items()
        )

    def _repr_html_(self) -> str:
        """A row for each, for a notebook."""
        rows = [
            (name, f"{found.value:.1%}", f"{found.low:.1%} to {found.high:.1%}", found.n)
            for name, found in self.shares.items()
        ]
        return table(("", "share", "95% interval", "n"), rows)

    @property
    def shares(self) -> dict[str, Interval]:
        """Those that were measured, by what they say."""
        shares = {
            "success: the new answer at rank 1": self.success,
            "exact: written freely, exactly it": self.exact,
            "efficacy: p(new) > p(true)": self.efficacy,
            "paraphrases: at rank 1": self.paraphrase_rank1,
            "paraphrases: p(new) > p(true)": self.paraphrase,
            "neighbours: p(true) > p(new)": self.neighbourhood,
        }
        return {name: found for name, found in shares.items() if found is not None}


def sum_up(states: Sequence[FactState]) -> Scores:
    """The shares of `states`, with 95% intervals over facts."""

    def over_facts(wins: Iterable[Sequence[bool]]) -> Interval | None:
        means = [sum(own) / len(own) for own in wins if own]
        return share(means) if means else None

    return Scores(
        facts=tuple(states),
        success=share([float(state.new.rank == 1) for state in states]),
        exact=share([float(state.exact) for state in states]),
        efficacy=share([float(state.new.p_token > state.true.p_token) for state in states]),
        paraphrase_rank1=over_facts([[new.rank == 1 for new, _ in state.paraphrases] for state in states]),
        paraphrase=over_facts([[new.p_token > true.p_token for new, true in state.paraphrases] for state in states]),
        neighbourhood=over_facts(
            [[true.p_token > new.p_token for true, new in state.neighbourhood] for state in states]
        ),
    )
