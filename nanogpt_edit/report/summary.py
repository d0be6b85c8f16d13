"""summary.json: the numbers of the report for programs, in a fixed shape.

stages.<stage>.<skill>.<metric>     {value, low, high, n}
comparisons.<after>-<before>.<metric>  {delta, low, high, p_value, n, smallest_detectable, verdict}
edit                                {n, success, …, seconds}: intervals as above, n and seconds plain
edit.known, edit.unknown            {success, …} over the facts that the model knew before the edit, and the others
edit.asked.<kind>                   {before, after, knew, rank1}: intervals; change: as in comparisons
seconds.<stage>, seconds.total      plain
tokens.<stage>, peak_bytes.<stage>  plain, where they were counted
environment                         as recorded
expectations                        [{metric, bound, value, low, high, n, verdict, n_needed, reason}]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.html import Shown
from nanogpt_edit.common.stats import Interval, change_of_share
from nanogpt_edit.evaluation.prompt_records import KindScore, by_kind
from nanogpt_edit.report.cost import Cost, costs
from nanogpt_edit.report.expect import Expectation, judge
from nanogpt_edit.report.ledger import Ledger, make_ledger
from nanogpt_edit.report.run import Run


@dataclass(frozen=True, slots=True)
class Summary(Shown):
    """What `build` returns: the numbers, the judged expectations and the ledger.

    `edit` is None when nothing was edited. `notes` names what the run folder does not hold (a run stopped half-way).
    """

    name: str
    stages: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    comparisons: Mapping[str, Mapping[str, Mapping[str, float | int | str]]]
    edit: Mapping[str, Interval | float | int] | None
    by_known: Mapping[str, Mapping[str, Interval]]
    """Of the edited facts that were "known" before and of those "unknown", where there are any."""
    kinds: tuple[KindScore, ...]
    """The edited facts asked in every form, by kind; empty where they were not."""
    seconds: Mapping[str, float]
    costs: tuple[Cost, ...]
    environment: Mapping[str, object]
    expectations: tuple[Expectation, ...]
    ledger: Ledger
    notes: tuple[str, ...]

    @property
    def all_passed(self) -> bool:
        """Whether every expectation passed; what is not decided or not measured has not passed."""
        return all(expectation.verdict == "pass" for expectation in self.expectations)

    @property
    def any_failed(self) -> bool:
        return any(expectation.verdict in ("fail", "wrong") for expectation in self.expectations)

    @property
    def overall(self) -> str:
        """fail when one fails, inconclusive when one is not decided or not measured, else pass; none without any."""
        if not self.expectations:
            return "none"
        return "fail" if self.any_failed else "pass" if self.all_passed else "inconclusive"

    def as_json(self) -> dict[str, object]:
        """The contents of summary.json."""
        return {**_numbers(self), "expectations": [asdict(expectation) for expectation in self.expectations]}


def summarise(run: Run) -> Summary:
    """Put the numbers of a run together and judge its recipe's expectations.

    Raises UserError when `[expect]` is no table.
    """
    unjudged = Summary(
        name=run.name,
        stages={name: stage.metrics for name, stage in run.stages.items()},
        comparisons={
            name: {metric: asdict(change) for metric, change in comparison.metrics.items()}
            for name, comparison in run.comparisons.items()
        },
        edit=_edit_numbers(run),
        by_known=run.edit.scores.by_known() if run.edit else {},
        kinds=by_kind(run.edit.scores.prompts) if run.edit else (),
        seconds=total_seconds(run.seconds),
        costs=costs(run),
        environment=run.environment,
        expectations=(),
        ledger=make_ledger(run),
        notes=run.notes,
    )
    expect = run.recipe.get("expect", {})
    if not isinstance(expect, dict):
        raise UserError(f"{run.path / 'recipe.toml'}: [expect] must be a table of metric paths and bounds.")
    return replace(unjudged, expectations=judge(expect, _numbers(unjudged), run.planned))


def total_seconds(seconds: Mapping[str, float]) -> Mapping[str, float]:
    """Seconds per stage with their sum as `total`; empty when nothing was timed."""
    return {**seconds, "total": sum(seconds.values())} if seconds else {}


def _edit_numbers(run: Run) -> Mapping[str, Interval | float | int] | None:
    if run.edit is None:
        return None
    means = {name: mean for name, mean in run.edit.scores.means.items() if mean is not None}
    drops = [
        fact.neighbourhood_before - fact.neighbourhood_after
        for fact in run.edit.scores.records
        if fact.neighbourhood_before is not None and fact.neighbourhood_after is not None
    ]
    if drops:
        means["neighbourhood_drop"] = change_of_share(drops)
    return {"n": run.edit.n, **means, "seconds": run.edit.seconds}


def _plain(numbers: Mapping[str, Interval | float | int]) -> dict[str, object]:
    return {key: asdict(value) if isinstance(value, Interval) else value for key, value in numbers.items()}


def _plain_parts(parts: Mapping[str, Mapping[str, Interval]]) -> dict[str, object]:
    return {name: _plain(means) for name, means in parts.items()}


def _edit(summary: Summary, means: Mapping[str, Interval | float | int]) -> dict[str, object]:
    asked = {
        each.kind: {name: value for name, value in asdict(each).items() if isinstance(value, dict)}
        for each in summary.kinds
    }
    return _plain(means) | _plain_parts(summary.by_known) | ({"asked": asked} if asked else {})


def _numbers(summary: Summary) -> dict[str, object]:
    return {
        "stages": {
            stage: {
                skill: {metric: asdict(measured) for metric, measured in metrics.items()}
                for skill, metrics in skills.items()
            }
            for stage, skills in summary.stages.items()
        },
        "comparisons": summary.comparisons,
        "edit": None if summary.edit is None else _edit(summary, summary.edit),
        "seconds": dict(summary.seconds),
        "tokens": {each.name: each.tokens for each in summary.costs if each.tokens is not None},
        "peak_bytes": {each.name: each.peak_bytes for each in summary.costs if each.peak_bytes is not None},
        "environment": dict(summary.environment),
    }
