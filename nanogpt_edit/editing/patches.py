"""Patches as things to work with: drop a fact, merge two, see what differs, move to other weights.

What can be done from the patch alone is done from it. Dropping facts solves every layer again without their keys, with
the remaining keys and residuals as they were found: exact for the first edited layer of an edit of one round; in later
layers, and of later rounds, the others' residuals still hold the little that the dropped facts had moved them. `rebase`
and `merge` need the model: they take new keys and residuals on its weights, and look again for what is unsaid where the
edit had more rounds than one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_edit.common.errors import UserError, quoted
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.editor import edit_model, solve_again
from nanogpt_edit.editing.patch import EditPatch, LayerUpdate, on_grid, product_norm, told
from nanogpt_edit.model.gpt import GPT


@dataclass(frozen=True)
class Conflict:
    """Two facts of different patches that cannot both hold: the same subject and relation (or prompt), other answers.

    Example: Conflict(fact_a, fact_b), in which Egypt's capital is Alexandria and Giza.
    """

    first: Fact
    second: Fact

    def describe(self) -> str:
        answers = f"{quoted(self.first.target_new)} against {quoted(self.second.target_new)}"
        return f"{quoted(self.first.prompt)}: {answers}"


@dataclass(frozen=True)
class PatchDifference:
    """What `diff` finds."""

    only_first: tuple[Fact, ...]
    only_second: tuple[Fact, ...]
    both: tuple[Fact, ...]
    conflicts: tuple[Conflict, ...]
    same_base: bool
    """Both expect the same original weights."""
    weight_change: dict[str, tuple[float, float, float]]
    """Per weight in either: ‖ΔW‖ of the first, of the second, and of their difference."""


def drop_facts(patch: EditPatch, indices: Sequence[int]) -> EditPatch:
    """`patch` without the facts at `indices`; to be bound to its model again before it can be reverted.

    Raises UserError for an index that is not there, for the last fact, or for the patch of a method without values.
    """
    dropped = sorted(set(indices))
    n = len(patch.edited)
    missing = [i for i in dropped if not 0 <= i < n]
    if missing:
        raise UserError(f"the patch has facts 0 to {n - 1}; there is no fact {missing[0]}.")
    if len(dropped) == n:
        raise UserError("dropping every fact leaves no patch; revert it instead.")
    if not patch.config.traits.finds_values:
        raise UserError(f"a patch of {patch.config.method} does not hold its facts apart; edit again without the fact.")
    kept = [i for i in range(n) if i not in set(dropped)]
    firsts = [sum(patch.batches[:b]) for b in range(len(patch.batches))]
    spans = [range(first, first + size) for first, size in zip(firsts, patch.batches, strict=True)]
    batches = [([i for i in span if i in dropped], [i for i in span if i not in dropped]) for span in spans]
    columns = [(_columns_of(patch, away), _columns_of(patch, staying)) for away, staying in batches]
    return _with_facts(patch, kept, {layer: _without(update, columns) for layer, update in patch.layers.items()})


def _columns_of(patch: EditPatch, facts: Sequence[int]) -> list[int]:
    """Which columns of the factors are those facts'."""
    ends = list(accumulate(edited.columns for edited in patch.edited))
    return [column for i in facts for column in range(ends[i] - patch.edited[i].columns, ends[i])]


def _without(update: LayerUpdate, batches: Sequence[tuple[list[int], list[int]]]) -> LayerUpdate:
    """Every batch of facts was solved by itself, so each is solved again by itself; `batches` are the columns that go
    and those that stay."""
    right, keys = update.right.double(), update.keys.double()
    parts: list[Tensor] = []
    for away, staying in batches:
        own = sorted((*away, *staying))
        part = drop_keys(right[own], keys[:, own], [own.index(i) for i in away]) if away else right[staying]
        parts.append(part)
    kept = [column for _, staying in batches for column in staying]
    left, new_right = on_grid(update.left[:, kept].double(), torch.cat(parts))
    return replace(update, left=left, right=new_right, keys=update.keys[:, kept].contiguous(), undo=None)


def scale_patch(patch: EditPatch, factors: Sequence[float]) -> EditPatch:
    """`patch` with every fact's part of ΔW times its factor (1: as it was found), to be bound to its model again.

    ΔW is a sum over columns, and each column is one fact's; facts with the factor 0 are left out. Raises UserError
    for all zeros, and for different factors of a patch that does not hold its facts apart.
    """
    kept = [number for number, factor in enumerate(factors) if factor != 0]
    if not kept:
        raise UserError("every fact is switched off, so there is no patch; switch one on, or revert the edit.")
    if not patch.config.traits.finds_values:
        if len(set(factors)) > 1:
            raise UserError(
                f"a patch of {patch.config.method} does not hold its facts apart; they can only be scaled together."
            )
        layers = {layer: _scaled(each, each.left * factors[0], each.right) for layer, each in patch.layers.items()}
        beside = {name: _scaled(each, each.left * factors[0], each.right) for name, each in patch.beside.items()}
        return replace(patch, layers=layers, beside=beside, scores=())
    columns = _columns_of(patch, kept)
    times = torch.tensor([factors[number] for number in kept for _ in range(patch.edited[number].columns)])
    layers = {
        layer: replace(
            _scaled(each, each.left[:, columns].double() * times.double(), each.right[columns]),
            keys=each.keys[:, columns].contiguous(),
        )
        for layer, each in patch.layers.items()
    }
    return replace(_with_facts(patch, kept, layers), scores=())


def _scaled(update: LayerUpdate, left: Tensor, right: Tensor) -> LayerUpdate:
    left, right = on_grid(left.double(), right.double())
    return replace(update, left=left.contiguous(), right=right.contiguous(), undo=None)


def _with_facts(patch: EditPatch, kept: Sequence[int], layers: Mapping[int, LayerUpdate]) -> EditPatch:
    """`patch` with these of its facts, whose columns are all that `layers` hold."""
    ends = list(accumulate(patch.batches))
    sizes = [sum(end - size <= i < end for i in kept) for end, size in zip(ends, patch.batches, strict=True)]
    return replace(
        patch,
        layers=layers,
        values=patch.values[list(kept)],
        edited=tuple(patch.edited[i] for i in kept),
        batches=tuple(size for size in sizes if size),
        scores=tuple(patch.scores[i] for i in kept) if patch.scores else (),
    )


def drop_keys(right: Tensor, keys: Tensor, dropped: list[int]) -> Tensor:
    """The right factor as it would be without some of the keys: (n, in) -> (n − d, in).

    Sherman–Morrison–Woodbury on right = Kᵀ B⁻¹, where B = A + K Kᵀ: with d the dropped and s the staying columns,
    (B − K_d K_dᵀ)⁻¹ = B⁻¹ + B⁻¹ K_d (I − K_dᵀ B⁻¹ K_d)⁻¹ K_dᵀ B⁻¹, so A itself is not needed.
    """
    staying = [i for i in range(len(right)) if i not in set(dropped)]
    overlap = right[dropped] @ keys[:, dropped]  # (d, d)
    identity = torch.eye(len(dropped), dtype=right.dtype, device=right.device)
    spread = right[staying] @ keys[:, dropped]  # (s, d)
    return right[staying] + spread @ torch.linalg.solve(identity - overlap, right[dropped])


def find_conflicts(first: EditPatch, second: EditPatch) -> tuple[Conflict, ...]:
    """Pairs of facts, one from each patch, that ask different answers of the same subject and relation or prompt."""
    return tuple(
        Conflict(a, b)
        for a in first.facts
        for b in second.facts
        if _about_the_same(a, b) and a.target_new.strip().casefold() != b.target_new.strip().casefold()
    )


def _about_the_same(a: Fact, b: Fact) -> bool:
    if a.prompt.strip().casefold() == b.prompt.strip().casefold():
        return True
    same_subject = a.subject.strip().casefold() == b.subject.strip().casefold()
    return same_subject and a.relation != "" and a.relation == b.relation


def merge_patches(
    model: GPT,
    first: EditPatch,
    second: EditPatch,
    *,
    covariance_blocks: Tensor | None,
    cache_dir: Path | None = None,
) -> EditPatch:
    """One patch with the facts of both, solved jointly on the weights both were made for, with `first`'s settings.

    Values are kept, so both must have been found at the same layer. Raises UserError for conflicts, naming them, and
    for patches of different weights.
    """
    conflicts = find_conflicts(first, second)
    if conflicts:
        listed = "; ".join(conflict.describe() for conflict in conflicts)
        raise UserError(f"the patches contradict each other: {listed}. Drop one side's facts first.")
    if not (first.config.traits.finds_values and second.config.traits.finds_values):
        raise UserError(
            f"patches of {first.config.method} and {second.config.method} have not both values to merge; edit again "
            "with all facts."
        )
    if first.config.layers[-1] != second.config.layers[-1]:
        raise UserError(
            f"the values of the patches belong to layers {first.config.layers[-1]} and {second.config.layers[-1]}; "
            "only patches with the same last layer can be merged."
        )
    first.check(model)
    second.check(model)
    known = {_identity(edited.fact) for edited in first.edited}
    fresh = [i for i, edited in enumerate(second.edited) if _identity(edited.fact) not in known]
    return solve_again(
        model,
        (*first.edited, *(second.edited[i] for i in fresh)),
        torch.cat((first.values, second.values[fresh])),
        first.config,
        covariance_blocks=covariance_blocks,
        cache_dir=cache_dir,
    )


def rebase_patch(
    model: GPT,
    patch: EditPatch,
    *,
    covariance_blocks: Tensor | None,
    cache_dir: Path | None = None,
) -> EditPatch:
    """The same facts edited anew on other weights: values, keys and solution are all recomputed."""
    return edit_model(model, patch.facts, patch.config, covariance_blocks=covariance_blocks, cache_dir=cache_dir)


def diff_patches(first: EditPatch, second: EditPatch) -> PatchDifference:
    """Which facts, and how much weight change, two patches share."""
    in_first = {_identity(fact) for fact in first.facts}
    in_second = {_identity(fact) for fact in second.facts}
    ours, theirs = first.matrices, second.matrices
    change = {name: _weight_change(name, ours.get(name), theirs.get(name)) for name in {**ours, **theirs}}
    return PatchDifference(
        only_first=tuple(fact for fact in first.facts if _identity(fact) not in in_second),
        only_second=tuple(fact for fact in second.facts if _identity(fact) not in in_first),
        both=tuple(fact for fact in first.facts if _identity(fact) in in_second),
        conflicts=find_conflicts(first, second),
        same_base=all(ours[name].expected_sha256 == theirs[name].expected_sha256 for name in ours if name in theirs),
        weight_change=change,
    )


def _identity(fact: Fact) -> tuple[str, str, str]:
    return (fact.prompt.strip(), fact.subject.strip().casefold(), fact.target_new.strip())


def _weight_change(name: str, a: LayerUpdate | None, b: LayerUpdate | None) -> tuple[float, float, float]:
    """‖ΔW‖ of both, and of their difference [L_a, −L_b] · [R_a; R_b]."""
    if a is None or b is None:
        norms = tuple(0.0 if each is None else each.norm() for each in (a, b))
        return norms[0], norms[1], max(norms)
    if (a.left.shape[0], a.right.shape[1]) != (b.left.shape[0], b.right.shape[1]):
        raise UserError(f"{told(name)} has another size in each patch; they belong to different models.")
    if torch.equal(a.left, b.left) and torch.equal(a.right, b.right):
        return a.norm(), b.norm(), 0.0
    apart = product_norm(torch.cat((a.left, -b.left), dim=1), torch.cat((a.right, b.right)))
    return a.norm(), b.norm(), apart
