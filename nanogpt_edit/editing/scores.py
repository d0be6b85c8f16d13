"""What an edit did, fact by fact, before and after, and what that comes to in words for a person.

Success is the reference's rule: the first token of `target_new` is the model's first choice after the prompt. `behind`
is the same where the prompt stands behind unrelated text: a text's first token has a state of its own, and a subject
that is one may hold in one place and not in the other. Beside them stands what the model writes freely: `exact` where
that is the new answer and nothing more. The rest is CounterFact's
(Meng et al. 2022, section 3.4): efficacy is p(target_new) > p(target_true), paraphrase the same on other phrasings,
neighbourhood p(true) > p(target_new) on prompts about other subjects, and S their harmonic mean after the edit. Where
two targets are compared, p is the geometric mean over a target's tokens (the authors compare the mean NLL per token),
so that a long answer is not beaten for its length; `p_target` in the records is the plain product. A model that knows
nothing has an efficacy and a paraphrase of about a half: what they were before the edit stands beside them.

Every prompt there is, in other places and forms, denied, followed further, and about what must stay, has a record of
its own (`evaluation/prompt_records.py`).

What the edit cost elsewhere: the n-gram entropy of what the model writes on (low when it begins to repeat itself), the
perplexity of held-out text, and how far the next-token distributions on it moved (`evaluation/drift.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from nanogpt_edit.common.errors import visible
from nanogpt_edit.common.memory import give_back
from nanogpt_edit.common.stats import Interval, harmonic_mean, quantity, share
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.patch import EditedFact, EditPatch
from nanogpt_edit.editing.records import Edit, EditScores, FactScore
from nanogpt_edit.evaluation.asking import compare_asked
from nanogpt_edit.evaluation.drift import Reading, drift, read
from nanogpt_edit.evaluation.facts import FactState, measure_facts
from nanogpt_edit.evaluation.perplexity import block_nats, nats_of, perplexity
from nanogpt_edit.evaluation.targets import TargetScore
from nanogpt_edit.model.gpt import GPT

VALUE_FOUND = 0.5  # probability of the target's tokens from which a value counts as found
FEW = 0.5  # a share of successes below it is no edit that worked
GOES_ON = "Likely reason: the first token is the new answer's, but the text goes on in another way."


@dataclass(frozen=True)
class ModelState:
    """What `measure_state` finds in a model: its facts, the perplexity of some text, and its states there."""

    facts: tuple[FactState, ...]
    perplexity: Interval | None
    reading: Reading | None


def score_patch(model: GPT, patch: EditPatch, *, text: Tensor | None = None, asked: bool = True) -> EditScores:
    """Measure the patch's facts on `model` before and with the patch; the model is left as it was.

    `text` (N, T + 1) are token ids of held-out text, for the perplexity and the drift. Without `asked` only a fact's
    own prompt, paraphrases and neighbours are scored, and no drift.
    """
    before = measure_state(model, patch.facts, text=text, asked=asked)
    with patch.applied(model):
        after = measure_state(model, patch.facts, text=text, asked=asked)
    return compare_models(model, patch.edited, before, after)


def measure_state(model: GPT, facts: Sequence[Fact], *, text: Tensor | None, asked: bool = True) -> ModelState:
    """What `compare_models` compares, of the model as it is now."""
    states = measure_facts(model, facts, fluency=True, asked=asked)
    give_back()  # the weights once more, as decoding reads them
    reading = read(model, text) if asked and text is not None else None
    return ModelState(states, None if text is None else _perplexity(model, text, reading), reading)


def compare_models(model: GPT, edited: Sequence[EditedFact], before: ModelState, after: ModelState) -> EditScores:
    """The scores of an edit from the states of the model before and after it, whose head is `model`'s in both."""
    readings = (before.reading, after.reading)
    return replace(
        compare_states(edited, before.facts, after.facts),
        perplexity_before=before.perplexity,
        perplexity_after=after.perplexity,
        drift=None if readings[0] is None or readings[1] is None else drift(model, readings[0], readings[1]),
    )


def kept_in(patch: EditPatch, scores: EditScores) -> EditPatch:
    """The patch with its scores, one record per fact."""
    return replace(patch, scores=tuple(asdict(record) for record in scores.records))


def edit_record(name: str, patch: EditPatch, scores: EditScores) -> Edit:
    """What a run keeps of an edit beside the patch itself."""
    settings = asdict(patch.config)
    return Edit(name, patch.config.method, tuple(patch.layers), patch.seconds, settings, scores, patch.tried)


def _perplexity(model: GPT, text: Tensor, reading: Reading | None) -> Interval:
    """Of `text`; what has been read of it is not run again."""
    nats = [] if reading is None else nats_of(model, reading.states, reading.blocks)
    return perplexity(nats + block_nats(model, text[len(nats) :]))["perplexity"]


def compare_states(edited: Sequence[EditedFact], before: Sequence[FactState], after: Sequence[FactState]) -> EditScores:
    """The scores of an edit from its facts' states before and after it (see `measure_facts`)."""
    records = tuple(_record(*triple) for triple in zip(edited, before, after, strict=True))
    efficacy, paraphrase, neighbourhood = (
        [float(r.efficacy) for r in records],
        [r.paraphrase_success for r in records],
        [r.neighbourhood_after for r in records],
    )
    return EditScores(
        records=records,
        success=share([float(r.success) for r in records]),
        behind_before=_mean([_at_rank_1(r.behind_rank_before) for r in records]),
        behind=_mean([_at_rank_1(r.behind_rank_after) for r in records]),
        exact=share([float(r.exact is True) for r in records]),
        contains=share([float(r.contains) for r in records]),
        token_accuracy=share([r.token_accuracy for r in records]),
        efficacy_before=share([float(r.efficacy_before is True) for r in records]),
        efficacy=share(efficacy),
        paraphrase_rank1_before=_mean([r.paraphrase_rank1_before for r in records]),
        paraphrase_rank1=_mean([r.paraphrase_rank1 for r in records]),
        paraphrase_before=_mean([r.paraphrase_before for r in records]),
        paraphrase=_mean(paraphrase),
        neighbourhood_before=_mean([r.neighbourhood_before for r in records]),
        neighbourhood_after=_mean(neighbourhood),
        neighbourhood_rank1_before=_mean([r.neighbourhood_rank1_before for r in records]),
        neighbourhood_rank1_after=_mean([r.neighbourhood_rank1_after for r in records]),
        score=harmonic_mean([efficacy, paraphrase, neighbourhood]),
        p_target_before=share([r.p_target_before for r in records]),
        p_target_after=share([r.p_target_after for r in records]),
        entropy_before=_mean_entropy([r.entropy_before for r in records]),
        entropy_after=_mean_entropy([r.entropy_after for r in records]),
        perplexity_before=None,
        perplexity_after=None,
        prompts=compare_asked([each.fact for each in edited], *([s.asked for s in found] for found in (before, after))),
    )


def _at_rank_1(rank: int | None) -> float | None:
    return None if rank is None else float(rank == 1)


def _mean(values: Sequence[float | None]) -> Interval | None:
    present = [value for value in values if value is not None]
    return share(present) if present else None


def _mean_entropy(bits: Sequence[float | None]) -> Interval | None:
    present = [value for value in bits if value is not None]
    return quantity(present) if present else None


def _record(edited: EditedFact, before: FactState, after: FactState) -> FactScore:
    fact = edited.fact
    success = after.new.rank == 1
    return FactScore(
        id=fact.id,
        relation=fact.relation,
        prompt=fact.prompt,
        subject=fact.subject,
        target_true=fact.target_true,
        target_new=fact.target_new,
        old_answer=before.answer,
        new_answer=after.answer,
        true_rank_before=before.true.rank,
        p_first_before=before.new.p_first,
        p_first_after=after.new.p_first,
        rank_before=before.new.rank,
        rank_after=after.new.rank,
        p_target_before=before.new.p_target,
        p_target_after=after.new.p_target,
        success=success,
        behind_rank_before=None if before.behind is None else before.behind.rank,
        behind_rank_after=None if after.behind is None else after.behind.rank,
        behind_p_first_before=None if before.behind is None else before.behind.p_first,
        behind_p_first_after=None if after.behind is None else after.behind.p_first,
        efficacy=after.new.p_token > after.true.p_token,
        efficacy_before=before.new.p_token > before.true.p_token,
        exact=after.exact,
        contains=fact.target_new.casefold() in after.answer.casefold(),
        token_accuracy=after.new.token_accuracy,
        paraphrase_before=_share(before.paraphrases, _preferred),
        paraphrase_success=_share(after.paraphrases, _preferred),
        paraphrase_rank1_before=_share(before.paraphrases, _first),
        paraphrase_rank1=_share(after.paraphrases, _first),
        neighbourhood_before=_share(before.neighbourhood, _preferred),
        neighbourhood_after=_share(after.neighbourhood, _preferred),
        neighbourhood_rank1_before=_share(before.neighbourhood, _first),
        neighbourhood_rank1_after=_share(after.neighbourhood, _first),
        entropy_before=before.entropy,
        entropy_after=after.entropy,
        subject_lookup=edited.lookup,
        value_probability=edited.probability,
        reason="" if success else _reason(edited, before, after),
    )


def _preferred(wanted: TargetScore, other: TargetScore) -> bool:
    return wanted.p_token > other.p_token


def _first(wanted: TargetScore, other: TargetScore) -> bool:
    return wanted.rank == 1


def _share(
    pairs: Sequence[tuple[TargetScore, TargetScore]], holds: Callable[[TargetScore, TargetScore], bool]
) -> float | None:
    return sum(holds(*pair) for pair in pairs) / len(pairs) if pairs else None


def _reason(edited: EditedFact, before: FactState, after: FactState) -> str:
    """Whether no value was found that says the target, or the weights could not hold the value."""
    reached = f"rank {before.new.rank} to {after.new.rank}, p {before.new.p_first:.3g} to {after.new.p_first:.3g}"
    if edited.probability < VALUE_FOUND:
        found = f"the optimisation reached p {edited.probability:.2g} with ‖δ‖ {edited.shift:.2g}‖h‖"
        return f"no value found: {found}; {reached}"
    return f"value found (p {edited.probability:.2g}), but the weights did not take it up; {reached}"


def describe(scores: EditScores) -> str:
    """One line: rank 1 after the prompt alone and behind other text, what is written freely, and the paraphrases beside
    what they were before."""
    records, after, before = scores.records, scores.paraphrase, scores.paraphrase_before
    told = [f"{sum(record.success for record in records)} of {len(records)} facts at rank 1"]
    if scores.behind is not None:
        told[0] += f" ({sum(record.behind_rank_after == 1 for record in records)} behind other text)"
    told += [
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
