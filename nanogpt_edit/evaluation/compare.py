"""Two checkpoints on the same problems, facts, prompts and text: every difference in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.stats import CONFIDENCE, Difference, GoodSide, mcnemar_exact, paired_difference
from nanogpt_edit.evaluation.facts import recalled_by_subject
from nanogpt_edit.evaluation.metrics import score_problems
from nanogpt_edit.evaluation.probes import non_arithmetic
from nanogpt_edit.evaluation.records import EvalRecord, Recall, read_nats, read_recalls, read_records
from nanogpt_edit.evaluation.suite import PASS_AT

GOOD: dict[str, GoodSide] = {
    "truncated": "less",
    "perplexity_nats_per_token": "less",
    "thinking_tokens": "neither",
    "answer_tokens": "neither",
    "facts_recall_edited": "neither",  # the edit was asked to forget them
}
"""Differences of which more is not better."""
COMPARED_BESIDE = ("facts", "text")  # eval/<stage>_facts.jsonl, eval/<stage>_text.jsonl
KEPT_BESIDE = (*COMPARED_BESIDE, "tokens")


def compare_evaluations(before: Path, after: Path) -> dict[str, Difference]:
    """Everything two evaluations measured both; each is named by its file of completions, `eval/<stage>.jsonl`.

    Facts and text are in the files beside it; what one side lacks is left out. Raises UserError when the two were
    measured on different problems, or a file is damaged.
    """
    records = [read_records(path) for path in (before, after)]
    differences = compare_records(*records) | compare_probes(*records)
    facts, text = (
        [path.with_name(f"{path.stem}_{what}.jsonl") for path in (before, after)] for what in COMPARED_BESIDE
    )
    if all(path.exists() for path in facts):
        differences |= compare_recalls(*(read_recalls(path) for path in facts))
    if all(path.exists() for path in text):
        differences |= compare_nats(*(read_nats(path) for path in text))
    return differences


def compare_records(before: Sequence[EvalRecord], after: Sequence[EvalRecord]) -> dict[str, Difference]:
    """Paired differences on the same problems: what `after` gained or lost over `before`.

    With different numbers of samples the first ones of each problem count. pass@k and majority@k of the problems (the
    latter with McNemar's exact p-value where the majorities are right or wrong), format, length; pass@1 of
    arithmetic, strict and flexible.
    Raises UserError when the two were not measured on the same problems.
    """
    differences: dict[str, Difference] = {}
    for skill, prefix in (("problems", ""), ("arithmetic", "arithmetic_")):
        sides = [[record for record in records if record.skill == skill] for records in (before, after)]
        if not all(sides):
            continue
        samples = min(1 + max(record.sample_index for record in side) for side in sides)
        old, new = (
            score_problems([record for record in side if record.sample_index < samples], ks=PASS_AT) for side in sides
        )
        asked = [{(each.problem_id, each.prompt, each.gold) for each in side} for side in sides]
        if old.problem_ids != new.problem_ids or asked[0] != asked[1]:
            raise UserError(f"the two evaluations used different {skill}; evaluate both with the same settings.")
        for name in old.values if skill == "problems" else ("pass_at_1", "flexible_pass_at_1"):
            pair = old.values[name], new.values[name]
            difference = paired_difference(
                *pair, good=good_side(prefix + name), are_shares=not name.endswith("_tokens")
            )
            if name.startswith("majority"):
                p_value = mcnemar_exact(*(values > 0.5 for values in pair))
                verdict = difference.verdict if p_value < 1 - CONFIDENCE else "inconclusive"
                difference = replace(difference, p_value=p_value, verdict=verdict)
            differences[prefix + name] = difference
    return differences


def compare_recalls(before: Sequence[Recall], after: Sequence[Recall]) -> dict[str, Difference]:
    """Paired differences of the share recalled, over subjects, for each group of facts with the same on both sides.

    A group of one subject has no interval and is left out.
    """
    old, new = recalled_by_subject(before), recalled_by_subject(after)
    return {
        f"facts_{group}": paired_difference(
            list(shares.values()),
            [new[group][subject] for subject in shares],
            good=good_side(f"facts_{group}"),
        )
        for group, shares in old.items()
        if len(shares) > 1 and shares.keys() == new.get(group, {}).keys()
    }


def compare_probes(before: Sequence[EvalRecord], after: Sequence[EvalRecord]) -> dict[str, Difference]:
    """The paired difference, over the prompts both were given, of the share of answers that are not arithmetic."""
    old, new = (non_arithmetic([each for each in side if each.skill == "probes"]) for side in (before, after))
    shared = [prompt for prompt in old if prompt in new]
    if len(shared) < 2:
        return {}
    return {"probes_non_arithmetic": paired_difference(*([side[prompt] for prompt in shared] for side in (old, new)))}


def compare_nats(before: Sequence[float], after: Sequence[float]) -> dict[str, Difference]:
    """The paired difference of nats per token over blocks of held-out text; none where the texts differ in length."""
    if len(before) != len(after) or len(before) < 2:
        return {}
    name = "perplexity_nats_per_token"
    return {name: paired_difference(before, after, good=good_side(name), are_shares=False)}


def good_side(name: str) -> GoodSide:
    """Is more of this difference better, less of it, or neither?"""
    return GOOD.get(name, "more")
