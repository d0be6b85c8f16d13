"""What an edit came to, in words for a person: the shares side by side, and what fell short, with the likely reason."""

from __future__ import annotations

from collections.abc import Sequence

from nanogpt_edit.common.errors import visible
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.records import EditScores, FactScore
from nanogpt_edit.editing.scores import VALUE_FOUND

FEW = 0.5  # a share of successes below it is no edit that worked
GOES_ON = "Likely reason: the first token is the new answer's, but the text goes on in another way."


def describe(scores: EditScores) -> str:
    """One line: rank 1, what is written freely, and the paraphrases beside what they were before."""
    records, after, before = scores.records, scores.paraphrase, scores.paraphrase_before
    told = [
        f"{sum(record.success for record in records)} of {len(records)} facts at rank 1",
        f"{sum(record.exact is True for record in records)} written freely are exactly the new answer",
    ]
    if after is not None and before is not None:
        told.append(f"p(new) > p(true) on {after.value:.0%} of paraphrases ({before.value:.0%} before)")
    if scores.paraphrase_rank1 is not None:
        told.append(f"rank 1 on {scores.paraphrase_rank1.value:.0%} of them")
    return ", ".join(told)


def shortfall(scores: EditScores, config: EditConfig) -> str:
    """What did not work, its likely reason and what to do, in one line; empty where nothing stands out."""
    failed = [record for record in scores.records if not record.success]
    same = [each for each in scores.records if each.new_answer == each.old_answer and not each.exact]
    n, told = len(scores.records), []
    exact = sum(record.exact is True for record in scores.records)
    if scores.success.value < FEW:
        told.append(f"only {n - len(failed)} of {n} facts have their new answer at rank 1")
    elif exact < FEW * n:
        told.append(f"only {exact} of {n} facts are written freely as exactly the new answer")
    if same:
        example = f'("{visible(same[0].prompt)}" → "{visible(same[0].new_answer)}")'
        told.append(f"{len(same)} of {n} {'says' if len(same) == 1 else 'say'} the same as before {example}")
    if not told:
        return ""
    reason = _likely_reason(failed or same, config) if failed or same else GOES_ON
    return f"Fell short: {' and '.join(told)}. {reason} --sweep chooses settings by trial, --recipe FILE takes them."


def _likely_reason(lost: Sequence[FactScore], config: EditConfig) -> str:
    without = sum((record.value_probability or 0.0) < VALUE_FOUND for record in lost)
    if 2 * without > len(lost):
        return (
            f"Likely reason: for {without} of {len(lost)} no value was found that says the new answer; more steps, a "
            "larger learning_rate or clamp, or other layers may find one."
        )
    return (
        "Likely reason: values were found, but the weights did not take them up; layers "
        f"{list(config.edited_layers)} or the protection of other text (covariance_weight) do not suit this model."
    )
