"""What n sampled completions per problem say: pass@k, majority@k, format compliance, lengths.

Every metric is first one value per problem; `stats` turns those into means with intervals, or into paired differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.evaluation.answers import is_correct, normalise
from nanogpt_edit.evaluation.records import EvalRecord

Values = NDArray[np.float64]


@dataclass(frozen=True)
class ProblemScores:
    """Per-problem values of every metric, in one order of problems.

    Example: ProblemScores(problem_ids=("test:1", "test:2"), samples=16, values={"pass_at_1": array([0.25, 0.0]), …})
    """

    problem_ids: tuple[str, ...]
    samples: int  # completions per problem
    values: dict[str, Values]  # metric -> (problems,), shares in 0..1, lengths in tokens


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Values:
    """Chance that k of n completions, c of them correct, hold a correct one: 1 − C(n−c, k) / C(n, k), elementwise.

    The unbiased estimator of Chen et al. 2021 (eq. 1), as a product of k ratios. Raises ValueError unless
    1 ≤ k ≤ n and 0 ≤ c ≤ n.
    """
    total, correct = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(c, dtype=np.float64))
    if k < 1 or np.any(total < k) or np.any(correct < 0) or np.any(correct > total):
        raise ValueError(f"pass@{k} needs 1 <= k <= n and 0 <= c <= n")
    none_right = np.ones(total.shape)
    for drawn in range(k):
        none_right *= np.maximum(total - correct - drawn, 0) / (total - drawn)
    return 1 - none_right


def majority_at_k(answers: Sequence[str | None], gold: str, k: int, *, subsets: int = 256, seed: int = 0) -> float:
    """Expected correctness of the majority answer among k of the answers of one problem, in 0..1.

    An answer that could not be read (None) does not vote; m answers tied in front give 1/m when one of them is right;
    no votes at all give 0. Votes are counted on `normalise`d answers. For k < n the mean over every subset of k when
    there are at most `subsets` of them, else over that many random ones. Raises ValueError unless 1 ≤ k ≤ n.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"majority@{k} needs 1 <= k <= {n} answers")
    names = sorted({normalise(answer) for answer in answers if answer is not None})
    if not names:
        return 0.0
    right = np.array([is_correct(name, gold) for name in names])  # (A,)
    votes = np.zeros((n, len(names)))  # (n, A), one-hot, all zero where None
    for row, answer in enumerate(answers):
        if answer is not None:
            votes[row, names.index(normalise(answer))] = 1
    tally = votes[_subsets(n, k, subsets=subsets, seed=seed)].sum(axis=1)  # (S, A)
    most = tally.max(axis=1, keepdims=True)
    front = (tally == most) & (most > 0)
    return float(np.mean((front & right).sum(axis=1) / np.maximum(front.sum(axis=1), 1)))


@lru_cache(maxsize=64)  # every problem of an evaluation draws the same ones
def _subsets(n: int, k: int, *, subsets: int, seed: int) -> NDArray[np.intp]:
    """(S, k) indices: all subsets when there are few enough, else `subsets` random ones."""
    if math.comb(n, k) <= subsets:
        return np.array(list(combinations(range(n), k)), dtype=np.intp)
    order = np.random.default_rng([seed, n, k]).random((subsets, n))
    return np.argpartition(order, k - 1, axis=1)[:, :k]


def score_problems(records: Iterable[EvalRecord], *, ks: Sequence[int] | None = None, seed: int = 0) -> ProblemScores:
    """All metrics of the completions of one skill, per problem, problems in order of first appearance.

    `ks` are the k of pass@k and majority@k (default: 1, 2, 4, … and n). Keys: pass_at_{k}, majority_at_{k} (k > 1),
    flexible_pass_at_1, well_formed, truncated, thinking_tokens, answer_tokens.
    Raises UserError when there are no records or problems have different numbers of completions.
    """
    groups: dict[str, list[EvalRecord]] = {}
    for record in records:
        groups.setdefault(record.problem_id, []).append(record)
    sizes = {len(group) for group in groups.values()}
    if len(sizes) != 1:
        raise UserError(f"Every problem needs the same number of completions, at least one; found {sorted(sizes)}.")
    n = sizes.pop()
    chosen = sorted({k for k in ks if k <= n} if ks is not None else {2**i for i in range(n.bit_length())} | {n})
    correct = np.array([sum(record.correct for record in group) for group in groups.values()])  # (P,)
    values: dict[str, Values] = {f"pass_at_{k}": pass_at_k(n, correct, k) for k in chosen}
    for k in chosen:
        if k > 1:
            values[f"majority_at_{k}"] = np.array(
                [majority_at_k([r.strict for r in group], group[0].gold, k, seed=seed) for group in groups.values()]
            )
    values["flexible_pass_at_1"] = _means(groups, lambda r: is_correct(r.flexible, r.gold))
    values["well_formed"] = _means(groups, lambda r: r.well_formed)
    values["truncated"] = _means(groups, lambda r: r.finish_reason == "length")
    values["thinking_tokens"] = _means(groups, lambda r: r.thinking_tokens)
    values["answer_tokens"] = _means(groups, lambda r: r.answer_tokens)
    return ProblemScores(problem_ids=tuple(groups), samples=n, values=values)


def _means(groups: Mapping[str, Sequence[EvalRecord]], value: Callable[[EvalRecord], float]) -> Values:
    return np.array([np.mean([value(record) for record in group]) for group in groups.values()])
