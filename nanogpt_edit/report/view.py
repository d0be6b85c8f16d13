"""Everything the page shows, chosen, drawn and phrased once; the HTML and the Markdown are two ways to print it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from nanogpt_edit.common.stats import Difference, Interval
from nanogpt_edit.evaluation.prompt_records import HELD, STAYS, KindScore, PromptScore
from nanogpt_edit.pipeline.records import READ_BY
from nanogpt_edit.report import examples, labels
from nanogpt_edit.report.canvas import Picture
from nanogpt_edit.report.examples import Example, FactGroup, LostFact
from nanogpt_edit.report.plots import learning_curves, pass_at_k, solved_counts
from nanogpt_edit.report.plots_edits import edit_pictures, example_pictures, token_label, trace_pictures
from nanogpt_edit.report.run import RolloutStep, Run
from nanogpt_edit.report.story import Change, changes, sentences
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
    lead: str
    story: tuple[str, ...]
    changes: tuple[Change, ...]
    facts: tuple[str, ...]
    verdict: str
    curves: tuple[Picture, ...]
    evaluation_pictures: tuple[Picture, ...]
    measures: tuple[Measure, ...]
    tested: tuple[Tested, ...]
    edit_pictures: tuple[Picture, ...]
    edit_groups: tuple[FactGroup, ...]
    kind_groups: tuple[tuple[str, tuple[KindScore, ...]], ...]
    moved: tuple[PromptScore, ...]
    trace_pictures: tuple[Picture, ...]
    example_pictures: tuple[Picture, ...]
    problems: tuple[Example, ...]
    prompts: tuple[tuple[str, tuple[Example, ...]], ...]
    lost_stages: tuple[str, ...]
    lost_facts: tuple[LostFact, ...]
    settings: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

    @property
    def contents(self) -> list[tuple[str, str]]:
        """(anchor, title) of the sections there are."""
        there = {
            ("ledger", "Ledger"): bool(self.summary.ledger.rows),
            ("curves", "Learning curves"): bool(self.curves),
            ("rollouts", "While learning"): bool(self.run.rollouts),
            ("evaluation", "Evaluation"): bool(self.measures),
            ("edits", "Edits"): self.run.edit is not None,
            ("trace", "Causal trace"): self.run.trace is not None,
            ("transcript", "Token by token"): self.run.transcript is not None,
            ("samples", "Right and wrong"): bool(self.problems),
            ("prompts-1", "More prompts"): bool(self.prompts),
            ("settings", "Settings"): True,
        }
        return [entry for entry, present in there.items() if present]

    @property
    def measures_by_skill(self) -> list[tuple[str, list[Measure]]]:
        return [(skill, list(rows)) for skill, rows in groupby(self.measures, key=lambda row: row.skill)]

    @property
    def tested_by_pair(self) -> list[tuple[str, list[Tested]]]:
        return [(pair, list(rows)) for pair, rows in groupby(self.tested, key=lambda row: row.pair)]

    @property
    def problems_by_kind(self) -> list[tuple[str, list[Example]]]:
        return [(kind, list(found)) for kind, found in groupby(self.problems, key=lambda one: one.kind)]

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
    def longest_seconds(self) -> float:
        return max((value for name, value in self.summary.seconds.items() if name != "total"), default=0.0) or 1.0

    @property
    def environment(self) -> list[tuple[str, str]]:
        """Versions, machine and data hashes, one line each."""
        lines: list[tuple[str, str]] = []
        for key, value in self.run.environment.items():
            if isinstance(value, dict):
                lines += [(f"{key}: {name}", _setting(inner)) for name, inner in value.items()]
            else:
                lines.append((key, _setting(value)))
        return lines

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
        lead=_lead(run),
        story=tuple(sentences(run, summary.ledger)),
        changes=tuple(changes(run)),
        facts=_header_facts(run, summary),
        verdict=_verdict(summary),
        curves=tuple(learning_curves(run)),
        evaluation_pictures=tuple(picture for picture in drawn if picture is not None),
        measures=_measures(run),
        tested=_tested(run),
        edit_pictures=tuple(edit_pictures(run.edit.scores.records)) if run.edit else (),
        edit_groups=tuple(examples.edit_groups(run.edit.scores.records)) if run.edit else (),
        kind_groups=_kind_groups(summary),
        moved=tuple(examples.moved_prompts(run.edit.scores.prompts)) if run.edit else (),
        trace_pictures=tuple(trace_pictures(run.trace)) if run.trace else (),
        example_pictures=tuple(example_pictures(run.trace)) if run.trace else (),
        problems=tuple(examples.problem_examples(run)),
        prompts=tuple((title, tuple(found)) for title, found in prompts.items() if found),
        lost_stages=lost_stages,
        lost_facts=tuple(lost),
        settings=_settings(run),
    )


def _lead(run: Run) -> str:
    """'A model of 1.03 M parameters, pretrained, taught to reason by SFT and GRPO, with 50 facts edited by MEMIT.'"""
    parameters = run.environment.get("parameters")
    size = f" of {parameters / 1e6:.3g} M parameters" if isinstance(parameters, int | float) else ""
    steps = [f"taken from {run.source}"] if run.source else []
    if "pretrain" in run.logs:
        steps.append("pretrained")
    taught = [name for key, name in (("sft", "SFT"), ("grpo", "GRPO")) if key in run.logs or key in run.stages]
    if taught:
        steps.append(f"taught to reason by {labels.listing(taught)}")
    if run.edit is not None:
        steps.append(f"with {labels.count(run.edit.n, 'fact')} edited by {run.edit.method.upper()}")
    return f"A model{size}" + (", " + ", ".join(steps) if steps else "") + "."


def _header_facts(run: Run, summary: Summary) -> tuple[str, ...]:
    environment = run.environment
    machine = [str(environment[key]) for key in ("cpu", "device") if environment.get(key) not in (None, "", "cpu")]
    if environment.get("threads"):
        machine.append(f"{environment['threads']} threads")
    shown = [f"recipe {run.recipe['name']}"] if isinstance(run.recipe.get("name"), str) else []
    shown += [_moment(environment["started"])] if environment.get("started") else []
    shown += [", ".join(machine)] if machine else []
    shown += [f"{key} {environment[key]}" for key in ("torch", "python") if environment.get(key)]
    version = environment.get("nanogpt-edit")
    shown += [f"nanogpt_edit {version}"] if version not in (None, "not installed") else []
    if "total" in summary.seconds:
        shown.append(f"{labels.duration(summary.seconds['total'])} in all")
    return tuple(shown)


def _moment(text: object) -> str:
    """'2026-03-01T12:00:00+00:00' -> '2026-03-01 12:00 UTC'; anything else as it stands."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return moment.strftime("%Y-%m-%d %H:%M ") + (moment.tzname() or "").replace("UTC+00:00", "UTC")


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


def _settings(run: Run) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """The recipe by table, without [expect] (judged above) and the settings of stages that it leaves out."""
    unused = {table for table, stage in READ_BY.items() if stage not in run.planned}
    groups: dict[str, list[tuple[str, str]]] = {}

    def walk(prefix: str, table: Mapping[str, object]) -> None:
        for key, value in table.items():
            if isinstance(value, dict):
                walk(f"{prefix}.{key}" if prefix else key, value)
            else:
                groups.setdefault(prefix or "recipe", []).append((key, _setting(value)))

    walk("", {key: value for key, value in run.recipe.items() if key not in {"expect", *unused}})
    return tuple((name, tuple(rows)) for name, rows in groups.items())


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_setting(item) for item in value)
    return str(value)
