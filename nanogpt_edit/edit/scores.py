"""What an edit did, fact by fact, before and after.

Success is the reference's rule: the first token of `target_new` is the model's first choice after the prompt. The rest
is CounterFact's (Meng et al. 2022, section 3.4): efficacy is p(target_new) > p(target_true), paraphrase the same on
other phrasings, neighbourhood p(true) > p(target_new) on prompts about other subjects, and S their harmonic mean after
the edit. Where two targets are compared, p is the geometric mean over a target's tokens (the authors compare the mean
NLL per token), so that a long answer is not beaten for its length; `p_target` in the records is the plain product.

Shapes: R rows (a prompt with a target), T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from nanogpt_edit.edit.contexts import pad_rows, tokenizer_of
from nanogpt_edit.edit.facts import Fact, join, target_ids
from nanogpt_edit.edit.patch import EditedFact, EditPatch
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling import Sampling
from nanogpt_edit.evaluate.stats import Interval, bootstrap_mean
from nanogpt_edit.files import write_json, write_jsonl
from nanogpt_edit.model.gpt import GPT

BATCH_TOKENS = 8192
ANSWER_TOKENS = 10
SENTENCE_END = re.compile(r"(?<=\w\w\w)[.!?](?=\s|$)|\n|<")


@dataclass(frozen=True)
class TargetScore:
    """How a model likes one target after one prompt."""

    p_first: float
    """Probability of the target's first token."""
    rank: int
    """Its rank among all tokens; 1 is the model's own choice."""
    p_target: float
    """Probability of the whole target."""
    p_token: float
    """Geometric mean probability per target token; what targets are compared by."""
    token_accuracy: float
    """Share of the target's tokens that are the model's choice, given those before."""


@dataclass(frozen=True)
class FactState:
    """One fact under one model: `paraphrases` and `neighbourhood` hold (wanted, other) targets per prompt."""

    new: TargetScore
    true: TargetScore
    paraphrases: tuple[tuple[TargetScore, TargetScore], ...]
    neighbourhood: tuple[tuple[TargetScore, TargetScore], ...]
    answer: str
    """What the model says, greedily, to the end of the sentence."""


@dataclass(frozen=True)
class FactScore:
    """One fact before and after the edit: a line of edits/<name>.jsonl."""

    id: str
    relation: str
    prompt: str
    subject: str
    target_true: str
    target_new: str
    old_answer: str
    """Greedy text before the edit."""
    new_answer: str
    """Greedy text after it."""
    p_first_before: float
    p_first_after: float
    rank_before: int
    rank_after: int
    p_target_before: float
    p_target_after: float
    success: bool
    """The target's first token has rank 1."""
    efficacy: bool
    """p(new) > p(true)."""
    contains: bool
    """The greedy text contains the whole target."""
    token_accuracy: float
    paraphrase_success: float | None
    """Share of paraphrases with p(new) > p(true); None without paraphrases."""
    paraphrase_rank1: float | None
    """Share of paraphrases where the target's first token has rank 1."""
    neighbourhood_before: float | None
    """Share of neighbours with p(true) > p(new)."""
    neighbourhood_after: float | None
    neighbourhood_rank1_before: float | None
    """Share of neighbours whose true answer's first token has rank 1."""
    neighbourhood_rank1_after: float | None
    subject_lookup: str
    reason: str
    """For a failure: where it was lost. Empty for a success."""


@dataclass(frozen=True)
class EditScores:
    """All facts of an edit, and the means with their 95% intervals over facts."""

    records: tuple[FactScore, ...]
    success: Interval
    efficacy: Interval
    contains: Interval
    token_accuracy: Interval
    paraphrase: Interval | None
    paraphrase_rank1: Interval | None
    neighbourhood_before: Interval | None
    neighbourhood_after: Interval | None
    neighbourhood_rank1_before: Interval | None
    neighbourhood_rank1_after: Interval | None
    score: Interval | None
    """S, the harmonic mean of efficacy, paraphrase and neighbourhood after the edit."""
    p_target_before: Interval
    p_target_after: Interval

    def summary(self, patch: EditPatch) -> dict[str, object]:
        """The contents of edits/<name>.json: the intervals, and how the patch was made."""
        means = {name: value for name, value in asdict(self).items() if name != "records"}
        return {
            "n": len(self.records),
            "method": patch.config.method,
            "layers": list(patch.layers),
            "seconds": patch.seconds,
            **means,
            "settings": asdict(patch.config),
        }

    def save(self, folder: Path, name: str, *, patch: EditPatch) -> None:
        """Write <name>.jsonl, one record per fact, and then <name>.json into `folder`."""
        write_jsonl(folder / f"{name}.jsonl", [asdict(record) for record in self.records])
        write_json(folder / f"{name}.json", self.summary(patch))


def score_patch(model: GPT, patch: EditPatch) -> EditScores:
    """Measure the patch's facts on `model` before and with the patch; the model is left as it was."""
    before = measure_facts(model, patch.facts)
    with patch.applied(model):
        after = measure_facts(model, patch.facts)
    return compare_states(patch.edited, before, after)


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
        success=bootstrap_mean([float(r.success) for r in records]),
        efficacy=bootstrap_mean(efficacy),
        contains=bootstrap_mean([float(r.contains) for r in records]),
        token_accuracy=bootstrap_mean([r.token_accuracy for r in records]),
        paraphrase=_mean(paraphrase),
        paraphrase_rank1=_mean([r.paraphrase_rank1 for r in records]),
        neighbourhood_before=_mean([r.neighbourhood_before for r in records]),
        neighbourhood_after=_mean(neighbourhood),
        neighbourhood_rank1_before=_mean([r.neighbourhood_rank1_before for r in records]),
        neighbourhood_rank1_after=_mean([r.neighbourhood_rank1_after for r in records]),
        score=harmonic_mean(efficacy, paraphrase, neighbourhood),
        p_target_before=bootstrap_mean([r.p_target_before for r in records]),
        p_target_after=bootstrap_mean([r.p_target_after for r in records]),
    )


def measure_facts(model: GPT, facts: Sequence[Fact]) -> tuple[FactState, ...]:
    """The state of every fact in `model`: all prompts and targets in a few batched passes, and one greedy answer."""
    wanted = [pair for fact in facts for pair in _pairs(fact)]
    scores = dict(zip(wanted, _score_targets(model, wanted), strict=True))
    answers = greedy_answers(model, [fact.prompt for fact in facts])
    return tuple(
        FactState(
            new=scores[fact.prompt, fact.target_new],
            true=scores[fact.prompt, fact.target_true],
            paraphrases=tuple((scores[p, fact.target_new], scores[p, fact.target_true]) for p in fact.paraphrases),
            neighbourhood=tuple(
                (scores[n.prompt, n.target_true], scores[n.prompt, fact.target_new]) for n in fact.neighbourhood
            ),
            answer=answer,
        )
        for fact, answer in zip(facts, answers, strict=True)
    )


def greedy_answers(model: GPT, prompts: Sequence[str], *, max_tokens: int = ANSWER_TOKENS) -> list[str]:
    """What the model says after each prompt, greedily, up to the end of the sentence or line."""
    tokenizer = tokenizer_of(model)
    completions = Engine(model).generate(
        [tokenizer.encode(prompt.rstrip()) for prompt in prompts],
        sampling=Sampling(temperature=0.0, max_new_tokens=max_tokens),
        stop_ids=frozenset(() if tokenizer.eos_id is None else (tokenizer.eos_id,)),
    )
    texts = [tokenizer.decode([i for i in c.token_ids if i != tokenizer.eos_id]) for c in completions]
    return [SENTENCE_END.split(text.strip(), maxsplit=1)[0].strip() for text in texts]


def harmonic_mean(
    efficacy: Sequence[float], paraphrase: Sequence[float | None], neighbourhood: Sequence[float | None]
) -> Interval | None:
    """S with its bootstrap interval over facts; None where no fact has paraphrases or neighbours."""
    columns = np.array([[math.nan if v is None else v for v in c] for c in (efficacy, paraphrase, neighbourhood)])
    if np.isnan(columns).all(axis=1).any():
        return None
    indices = np.random.default_rng(0).integers(columns.shape[1], size=(10_000, columns.shape[1]))
    present = ~np.isnan(columns)
    filled = np.where(present, columns, 0.0)

    def score(
        rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        means = filled[:, rows].sum(-1) / np.maximum(present[:, rows].sum(-1), 1)  # (3, resamples)
        inverse = (1 / np.maximum(means, 1e-12)).sum(0)
        return np.asarray(np.where((means > 0).all(0), 3 / inverse, 0.0))

    low, high = np.quantile(score(indices), [0.025, 0.975])
    value = float(score(np.arange(columns.shape[1])[None])[0])
    return Interval(value=value, low=float(low), high=float(high), n=columns.shape[1])


def _mean(values: Sequence[float | None]) -> Interval | None:
    present = [value for value in values if value is not None]
    return bootstrap_mean(present) if present else None


def _pairs(fact: Fact) -> list[tuple[str, str]]:
    """Every prompt with every target that is asked of it."""
    both = (fact.target_new, fact.target_true)
    own = [(prompt, target) for prompt in (fact.prompt, *fact.paraphrases) for target in both]
    return own + [(n.prompt, target) for n in fact.neighbourhood for target in (n.target_true, fact.target_new)]


@torch.no_grad()
def _score_targets(model: GPT, pairs: Sequence[tuple[str, str]]) -> list[TargetScore]:
    tokenizer = tokenizer_of(model)
    rows: list[tuple[list[int], tuple[int, ...]]] = []
    for prompt, target in pairs:
        rows.append((tokenizer.encode(join(prompt, target)[0]), target_ids(prompt, target, tokenizer)))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    scores: dict[int, TargetScore] = {}
    while order:
        longest = sum(map(len, rows[order[-1]]))
        count = max(1, BATCH_TOKENS // longest)
        batch, order = order[-count:], order[:-count]
        for index, score in zip(batch, _score_batch(model, [rows[i] for i in batch], tokenizer.pad_id), strict=True):
            scores[index] = score
    return [scores[i] for i in range(len(rows))]


def _score_batch(model: GPT, rows: Sequence[tuple[list[int], tuple[int, ...]]], pad_id: int) -> list[TargetScore]:
    token_ids = pad_rows([(*prompt, *target[:-1]) for prompt, target in rows], pad_id=pad_id, device=model.device)
    states = model.hidden(token_ids)  # (R, T, D)
    where = [(row, len(prompt) - 1 + j) for row, (prompt, target) in enumerate(rows) for j in range(len(target))]
    row, column = torch.tensor(where, device=model.device).T
    wanted = torch.tensor([t for _, target in rows for t in target], device=model.device)
    logits = model.logits(states[row, column]).float()  # (all target tokens, V)
    own = logits.gather(-1, wanted[:, None])
    logprobs = (own.squeeze(-1) - logits.logsumexp(-1)).tolist()
    ranks = (1 + (logits > own).sum(-1)).tolist()
    scores, at = [], 0
    for _, target in rows:
        mine, mine_ranks = logprobs[at : at + len(target)], ranks[at : at + len(target)]
        at += len(target)
        scores.append(
            TargetScore(
                p_first=math.exp(mine[0]),
                rank=mine_ranks[0],
                p_target=math.exp(sum(mine)),
                p_token=math.exp(sum(mine) / len(mine)),
                token_accuracy=sum(rank == 1 for rank in mine_ranks) / len(mine_ranks),
            )
        )
    return scores


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
        p_first_before=before.new.p_first,
        p_first_after=after.new.p_first,
        rank_before=before.new.rank,
        rank_after=after.new.rank,
        p_target_before=before.new.p_target,
        p_target_after=after.new.p_target,
        success=success,
        efficacy=after.new.p_token > after.true.p_token,
        contains=fact.target_new.casefold() in after.answer.casefold(),
        token_accuracy=after.new.token_accuracy,
        paraphrase_success=_share(after.paraphrases, lambda wanted, other: wanted.p_token > other.p_token),
        paraphrase_rank1=_share(after.paraphrases, lambda wanted, _: wanted.rank == 1),
        neighbourhood_before=_share(before.neighbourhood, lambda wanted, other: wanted.p_token > other.p_token),
        neighbourhood_after=_share(after.neighbourhood, lambda wanted, other: wanted.p_token > other.p_token),
        neighbourhood_rank1_before=_share(before.neighbourhood, lambda wanted, _: wanted.rank == 1),
        neighbourhood_rank1_after=_share(after.neighbourhood, lambda wanted, _: wanted.rank == 1),
        subject_lookup=edited.lookup,
        reason="" if success else _reason(edited, before, after),
    )


def _share(
    pairs: Sequence[tuple[TargetScore, TargetScore]], holds: Callable[[TargetScore, TargetScore], bool]
) -> float | None:
    return sum(holds(*pair) for pair in pairs) / len(pairs) if pairs else None


def _reason(edited: EditedFact, before: FactState, after: FactState) -> str:
    """Whether no value was found that says the target, or the weights could not hold the value."""
    reached = f"rank {before.new.rank} to {after.new.rank}, p {before.new.p_first:.3g} to {after.new.p_first:.3g}"
    if edited.probability < 0.5:
        found = f"the optimisation reached p {edited.probability:.2g} with ‖δ‖ {edited.shift:.2g}‖h‖"
        return f"no value found: {found}; {reached}"
    return f"value found (p {edited.probability:.2g}), but the weights did not take it up; {reached}"
