"""Everything the page shows, chosen, drawn and phrased once; the HTML and the Markdown are two ways to print it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from nanogpt_edit.common.stats import Difference, Interval
from nanogpt_edit.evaluation.prompt_records import HELD, STAYS, KindScore
from nanogpt_edit.report import examples, labels, setup
from nanogpt_edit.report.canvas import Picture
from nanogpt_edit.report.collateral import MovedFact, Turned, moved_facts, turned
from nanogpt_edit.report.examples import Example, FactGroup, LostFact
from nanogpt_edit.report.plots import learning_curves, pass_at_k, solved_counts
from nanogpt_edit.report.plots_edits import edit_pictures, example_pictures, token_label, trace_pictures
from nanogpt_edit.report.run import RolloutStep, Run
from nanogpt_edit.report.setup import Settings
from nanogpt_edit.report.story import Change, Told, changes, known_before, sentences
from nanogpt_edit.report.summary import Summary
from nanogpt_edit.training.records import Rollout


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of the evaluation table: one metric over all checkpoints."""

    skill: str
    metric: str
    values: tuple[Interval | None, ...]

    @property
    def n(self) -> str:
        """The number of problems or facts, where the checkpoints agree on it."""
        sizes = {value.n for value in self.values if value is not None}
        return f"{sizes.pop():,}" if len(sizes) == 1 else ", ".join(f"{n:,}" for n in sorted(sizes))


@dataclass(frozen=True, slots=True)
class Tested:
    """A row of the comparison table."""

    pair: str
    metric: str
    label: str
    change: Difference


@dataclass(frozen=True, slots=True)
class View:
    """Everything both templates show, in the order they show it."""

    run: Run
    summary: Summary
    story: tuple[Told, ...]
    changes: tuple[Change, ...]
    header: tuple[str, ...]
    known: str
    """How many of the edited facts the model knew before, in a sentence; empty where nobody says."""
    verdict: str
    curves: tuple[Picture, ...]
    evaluation_pictures: tuple[Picture, ...]
    measures: tuple[Measure, ...]
    tested: tuple[Tested, ...]
    edit_pictures: tuple[Picture, ...]
    edit_groups: tuple[FactGroup, ...]
    kind_groups: tuple[tuple[str, tuple[KindScore, ...]], ...]
    turned: tuple[Turned, ...]
    moved: tuple[MovedFact, ...]
    trace_pictures: tuple[Picture, ...]
    example_pictures: tuple[Picture, ...]
    prompts: tuple[tuple[str, tuple[Example, ...]], ...]
    lost_stages: tuple[str, ...]
    lost_facts: tuple[LostFact, ...]
    settings: Settings
    environment: tuple[tuple[str, str], ...]

    @property
    def contents(self) -> list[tuple[str, str]]:
        """(anchor, title) of the sections there are."""
        there = {
            ("ledger", "Ledger"): bool(self.summary.ledger.rows),
            ("curves", "Learning curves"): bool(self.curves),
            ("tokens", "Token by token"): self.has_tokens,
            ("evaluation", "Evaluation"): bool(self.measures),
            ("edits", "Edits"): self.run.edit is not None,
            ("collateral", "What else changed"): self.has_collateral,
            ("trace", "Causal trace"): self.run.trace is not None,
            ("prompts", "More prompts"): bool(self.prompts),
            ("cost", "Time and settings"): True,
        }
        return [entry for entry, present in there.items() if present]

    @property
    def has_collateral(self) -> bool:
        drift = self.run.edit.scores.drift if self.run.edit else None
        return bool(drift or self.moved or self.turned or self.lost_stages)

    @property
    def has_tokens(self) -> bool:
        return bool(self.run.rollouts or self.run.told or self.run.transcript)

    @property
    def stage_names(self) -> list[str]:
        return list(self.run.stages)

    @property
    def asked_with(self) -> str:
        """The settings of the last evaluation that are set: 'problems 400, samples 16, …'."""
        last = list(self.run.stages.values())[-1]
        return ", ".join(f"{key} {value}" for key, value in last.settings.items() if value not in (None, {}, []))

    @property
    def measures_by_skill(self) -> list[tuple[str, list[Measure]]]:
        return [(skill, list(rows)) for skill, rows in groupby(self.measures, key=lambda row: row.skill)]

    @property
    def tested_by_pair(self) -> list[tuple[str, list[Tested]]]:
        return [(pair, list(rows)) for pair, rows in groupby(self.tested, key=lambda row: row.pair)]

    def verdicts(self, rows: Sequence[Tested]) -> str:
        """'12 better, 3 worse and 8 inconclusive'."""
        counts: Counter[str] = Counter(row.change.verdict for row in rows)
        return labels.listing([f"{counts[verdict]} {verdict}" for verdict in labels.ARROWS if counts[verdict]])

    @property
    def rollouts_by_problem(self) -> list[tuple[RolloutStep, list[list[Rollout]]]]:
        """Each step with its shown completions, those of one problem together, the better one first."""
        return [
            (step, [list(found) for _, found in groupby(step.shown, key=lambda rollout: rollout.group)])
            for step in self.run.rollouts
        ]

    @property
    def lookups(self) -> str:
        """How the edits' subjects were found in their prompts: '40 exact, 10 ignoring case'."""
        facts = self.run.edit.scores.records if self.run.edit else ()
        counts = Counter(fact.subject_lookup for fact in facts if fact.subject_lookup)
        return ", ".join(f"{n} {how}" for how, n in counts.most_common())

    @property
    def parts(self) -> list[tuple[str, int]]:
        """("known", how many) and ("unknown", how many) of the edited facts, where there are both."""
        parts = [(name, means["success"].n) for name, means in self.summary.by_known.items()]
        return parts if len(parts) > 1 else []

    @property
    def token_lines(self) -> str:
        """The transcript for a fixed-width block: place, id, kind and text of every token."""
        return "\n".join(
            f"{n:4d}  {token_id:6d}  {kind:7s}  {token_label(text)}"
            for n, (token_id, text, kind) in enumerate(self.tokens)
        )

    @property
    def tokens(self) -> list[tuple[int, str, str]]:
        """Id, text and kind of every token of the transcript; those of the prompt are of the kind "prompt"."""
        transcript = self.run.transcript
        if transcript is None:
            return []
        return [(*token, "prompt") for token in transcript.prompt] + list(transcript.completion)

    @property
    def counts_tokens(self) -> bool:
        return any(each.tokens is not None for each in self.summary.costs)

    @property
    def tells_memory(self) -> bool:
        return any(each.peak_bytes is not None for each in self.summary.costs)

    @property
    def longest_seconds(self) -> float:
        return max((value for name, value in self.summary.seconds.items() if name != "total"), default=0.0) or 1.0

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return self.curves + self.evaluation_pictures + self.edit_pictures + self.trace_pictures + self.example_pictures


def make_view(run: Run, summary: Summary) -> View:
    """Choose, draw and phrase everything once."""
    lost_stages, lost = examples.lost_facts(run)
    drawn = (pass_at_k(run), solved_counts(run))
    prompts = {
        "Questions that are not mathematics": examples.prompt_examples(run, "probes", limit=12),
        "Simple arithmetic": examples.prompt_examples(run, "arithmetic", limit=8),
    }
    return View(
        run=run,
        summary=summary,
        story=tuple(sentences(run, summary)),
        changes=tuple(changes(run)),
        header=setup.header(run),
        known=known_before(run.edit) if run.edit else "",
        verdict=_verdict(summary),
        curves=tuple(learning_curves(run.logs)),
        evaluation_pictures=tuple(picture for picture in drawn if picture is not None),
        measures=_measures(run),
        tested=_tested(run),
        edit_pictures=tuple(edit_pictures(run.edit.scores.records)) if run.edit else (),
        edit_groups=tuple(examples.edit_groups(run.edit.scores.records)) if run.edit else (),
        kind_groups=_kind_groups(summary),
        turned=tuple(turned(run)),
        moved=tuple(moved_facts(run)),
        trace_pictures=tuple(trace_pictures(run.trace)) if run.trace else (),
        example_pictures=tuple(example_pictures(run.trace)) if run.trace else (),
        prompts=tuple((title, tuple(found)) for title, found in prompts.items() if found),
        lost_stages=lost_stages,
        lost_facts=tuple(lost),
        settings=setup.settings(run),
        environment=tuple(setup.versions(run)),
    )


def _verdict(summary: Summary) -> str:
    """'8 of 9 expectations hold; 1 is inconclusive'."""
    verdicts = [expectation.verdict for expectation in summary.expectations]
    if not verdicts:
        return "The recipe states no expectations"
    held = verdicts.count("pass")
    text = f"All {held} expectations hold" if held == len(verdicts) else f"{held} of {len(verdicts)} expectations hold"
    words = {"fail": "failed", "wrong": "wrong in the recipe", "inconclusive": "inconclusive"}
    words |= {key: key for key in ("undecidable", "not measured")}
    return "; ".join([text] + [f"{verdicts.count(key)} {word}" for key, word in words.items() if key in verdicts])


def _measures(run: Run) -> tuple[Measure, ...]:
    keys = dict.fromkeys(
        (skill, metric)
        for stage in run.stages.values()
        for skill, metrics in stage.metrics.items()
        for metric in metrics
    )
    skills = list(dict.fromkeys(skill for skill, _ in keys))
    return tuple(
        Measure(skill, metric, tuple(stage.metrics.get(skill, {}).get(metric) for stage in run.stages.values()))
        for skill, metric in sorted(keys, key=lambda key: skills.index(key[0]))
    )


def _kind_groups(summary: Summary) -> tuple[tuple[str, tuple[KindScore, ...]], ...]:
    """The kinds of prompts by what an edit is to do there."""

    def role(score: KindScore) -> str:
        if score.kind in STAYS:
            return "What must stay"
        return "Stands by what it holds" if score.kind in HELD else "Gives the new answer"

    return tuple((title, tuple(found)) for title, found in groupby(summary.kinds, key=role))


def _tested(run: Run) -> tuple[Tested, ...]:
    return tuple(
        Tested(
            pair=f"{labels.stage_label(comparison.after)} minus {labels.stage_label(comparison.before)}",
            metric=metric,
            label=labels.change_label(metric),
            change=change,
        )
        for comparison in run.comparisons.values()
        for metric, change in comparison.metrics.items()
    )
