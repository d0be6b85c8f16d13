"""Two runs on the same problems, facts and text: every checkpoint that both have, and their edits, in pairs.

What was not asked alike is not compared, and that is said; nothing is compared that only looks the same, such as a
text of the same length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.stats import Difference, paired_difference, share
from nanogpt_edit.editing.records import OF_PART, Edit, FactScore
from nanogpt_edit.evaluation.compare import compare_nats, compare_probes, compare_recalls, compare_records
from nanogpt_edit.evaluation.prompt_records import RULES, PromptScore
from nanogpt_edit.evaluation.records import Evaluation, Recall
from nanogpt_edit.report import labels, setup
from nanogpt_edit.report.pair import Compared, Part, RunPair
from nanogpt_edit.report.read import read_run
from nanogpt_edit.report.run import Run
from nanogpt_edit.report.summary import total_seconds

SAMPLED = ("temperature", "top_k", "max_new_tokens", "asked_as")
"""Settings of an evaluation that change how it is asked."""
OF_MACHINE = ("cpu", "threads", "device", "torch", "nanogpt-edit", "parameters", "vocabulary")
BEFORE_EDIT = ("neighbourhood_before",)
Said = tuple[str, str]
"""A part of the runs, and what could not be compared in it."""


def compare_runs(first: Path, second: Path) -> RunPair:
    """B less A, of everything that both were asked.

    Raises UserError for a folder that is no run, and where nothing of the two can be compared.
    """
    a, b = read_run(first), read_run(second)
    said: list[Said] = []
    parts = [_checkpoint(a.stages[name], b.stages[name], said) for name in a.stages if name in b.stages]
    if a.edit is not None and b.edit is not None:
        parts.append(_edits(a.edit, b.edit, said))
    parts, notes = [part for part in parts if part.rows], [*_alone(a, b), *_gathered(said)]
    if not parts:
        why = " ".join(notes) or "No checkpoint of the same name was measured in both."
        raise UserError(f"{first} and {second} cannot be compared. {why}")
    return RunPair(
        paths=(str(first), str(second)),
        took=(_took(a), _took(b)),
        parts=tuple(parts),
        set_apart=tuple(_set_apart(a, b)),
        notes=tuple(notes),
    )


def _alone(a: Run, b: Run) -> Iterator[str]:
    """What only one of them has."""
    for name, one, other in (("A", a, b), ("B", b, a)):
        stages = [labels.stage_label(stage) for stage in one.stages if stage not in other.stages]
        if stages:
            yield f"Only {name} has the checkpoint{'s' if len(stages) > 1 else ''} {labels.listing(stages)}."


def _gathered(said: Sequence[Said]) -> Iterator[str]:
    """'SFT and GRPO: the two evaluations used different problems; …': what is said of several parts, once."""
    parts: dict[str, list[str]] = {}
    for part, sentence in said:
        parts.setdefault(sentence, []).append(part)
    for sentence, named in parts.items():
        yield f"{labels.listing(named)}: {sentence}"


def _took(run: Run) -> str:
    seconds = total_seconds(run.seconds)
    return f"{labels.duration(seconds['total'])} in all" if seconds else ""


def _set_apart(a: Run, b: Run) -> Iterator[tuple[str, str, str]]:
    """Settings, versions and machines that differ."""
    sides = []
    for run in (a, b):
        values = {f"{table}.{key}": value for table, rows in setup.settings(run) for key, value in rows}
        sides.append(values | {key: str(run.environment[key]) for key in OF_MACHINE if key in run.environment})
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        one, other = (side.get(name, "–") for side in sides)
        if one != other:
            yield name, one, other


def _checkpoint(a: Evaluation, b: Evaluation, notes: list[Said]) -> Part:
    """One checkpoint of both runs."""
    title, said, found = labels.stage_label(a.stage), list[str](), dict[str, Difference]()
    for skill in ("problems", "arithmetic"):
        sides = [[each for each in side.records if each.skill == skill] for side in (a, b)]
        try:
            found |= compare_records(*sides)
        except UserError as error:
            said.append(str(error))
    found |= compare_probes(a.records, b.records) | _facts(a.recalls, b.recalls, said) | _text(a, b, said)
    for key in SAMPLED:
        one, other = a.settings.get(key), b.settings.get(key)
        if one != other:
            said.append(f"asked with another {key} ({one} in A, {other} in B), which is part of the difference.")
    notes += [(title, each) for each in said]
    return Part(title, tuple(_rows(a, b, found)))


def _rows(a: Evaluation, b: Evaluation, differences: Mapping[str, Difference]) -> Iterator[Compared]:
    for name, change in differences.items():
        skill, metric = labels.column_of(name)
        one, other = (side.metrics.get(skill, {}).get(metric) for side in (a, b))
        if one is not None and other is not None:
            yield Compared(metric, labels.change_label(name), one, other, change)


def _facts(a: Sequence[Recall], b: Sequence[Recall], said: list[str]) -> dict[str, Difference]:
    """The groups of facts that were asked alike."""
    asked_a, asked_b = _questions(a), _questions(b)
    both = [group for group in asked_a if group in asked_b]
    same = {group for group in both if asked_a[group] == asked_b[group]}
    said += [
        f"{labels.metric_label(group)}: not of the same facts in A and B, so not compared."
        for group in both
        if group not in same
    ]
    return compare_recalls(*([each for each in side if each.group in same] for side in (a, b)))


def _questions(recalls: Sequence[Recall]) -> dict[str, set[tuple[str, str, str]]]:
    groups: dict[str, set[tuple[str, str, str]]] = {}
    for each in recalls:
        groups.setdefault(each.group, set()).add((each.subject, each.prompt, each.target))
    return groups


def _text(a: Evaluation, b: Evaluation, said: list[str]) -> dict[str, Difference]:
    """Held-out text, where both say that it is the same, token by token."""
    if not a.nats or not b.nats:
        return {}
    if a.text_sha256 is None or b.text_sha256 is None:
        said.append("held-out text: an evaluation of an earlier version does not say which it was, so not compared.")
        return {}
    if a.text_sha256 != b.text_sha256:
        said.append("held-out text: not the same tokens in A and B, so not compared.")
        return {}
    return compare_nats(a.nats, b.nats)


def _edits(a: Edit, b: Edit, notes: list[Said]) -> Part:
    """The edits of the same facts: every score that both have of each fact, and every form of asking."""
    title, said = "Edits", list[str]()
    facts_a, facts_b = ({_fact(each): each for each in side.scores.records} for side in (a, b))
    if facts_a.keys() != facts_b.keys():
        shared = len(facts_a.keys() & facts_b.keys())
        alike = f"{len(facts_a)} in A, {len(facts_b)} in B, {shared} of them the same"
        notes.append((title, f"not of the same facts ({alike}), so not compared."))
        return Part(title, ())
    pairs = [(fact, facts_b[key]) for key, fact in facts_a.items()]
    rows = [row for name, measure in OF_PART.items() if name not in BEFORE_EDIT for row in _score(name, measure, pairs)]
    rows += [row for kind in RULES for row in _asked(kind, a.scores.prompts, b.scores.prompts, said)]
    if a.scores.drift and b.scores.drift:
        kl = [labels.interval("kl", side.kl) for side in (a.scores.drift, b.scores.drift)]
        said.append(f"KL on unrelated text is kept as a mean, so not compared in pairs: {kl[0]} in A, {kl[1]} in B.")
    notes += [(title, each) for each in said]
    return Part(title, tuple(rows))


def _fact(fact: FactScore) -> tuple[str, str, str]:
    return fact.prompt, fact.target_true, fact.target_new


def _score(
    name: str, measure: Callable[[FactScore], float | None], pairs: Sequence[tuple[FactScore, FactScore]]
) -> Iterator[Compared]:
    """One score of the facts that have it on both sides; none where there are not two."""
    both = [
        (one, other)
        for one, other in ((measure(a), measure(b)) for a, b in pairs)
        if one is not None and other is not None
    ]
    if len(both) > 1:
        yield _compared(name, labels.metric_label(name), *zip(*both, strict=True))


def _asked(kind: str, a: Sequence[PromptScore], b: Sequence[PromptScore], said: list[str]) -> Iterator[Compared]:
    """Facts asked in one form, where it is asked alike; over facts, of which each may have several prompts."""
    sides = [[each for each in side if each.kind == kind] for side in (a, b)]
    wanted_a, wanted_b = ({(each.prompt, each.wanted) for each in side} for side in sides)
    if not wanted_a or not wanted_b:
        return
    if wanted_a != wanted_b:
        said.append(f"{labels.KIND_LABELS[kind]}: not asked alike in A and B, so not compared.")
        return
    shares_a, shares_b = (_shares(side) for side in sides)
    keys = [key for key in shares_a if key in shares_b]
    if len(keys) > 1:
        yield _compared(
            "right",
            f"{labels.KIND_LABELS[kind]}: right",
            *([side[key] for key in keys] for side in (shares_a, shares_b)),
        )


def _shares(prompts: Sequence[PromptScore]) -> dict[str, float]:
    """Of each fact the share of its prompts that are right after the edit."""
    of: dict[str, list[bool]] = {}
    for each in prompts:
        of.setdefault(each.id or str(each.fact), []).append(each.right_after)
    return {key: sum(own) / len(own) for key, own in of.items()}


def _compared(metric: str, label: str, a: Sequence[float], b: Sequence[float]) -> Compared:
    return Compared(metric, label, share(a), share(b), paired_difference(a, b))
