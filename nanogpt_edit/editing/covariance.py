"""C = E[k kᵀ]: what the keys of ordinary text look like, for several layers in one pass over the text.

Each layer's `mlp_key` activations are summed as outer products in float64, over all tokens, the text's blocks in a
seeded order. After every doubling of the tokens two relative changes are measured: of C itself, and of C⁻¹k on probe
keys (what the solver uses). A layer has converged when the first is under the tolerance; the pass ends when all have,
or when the tokens are spent. Either way the record says how far it came.

`covariance_files` keeps them on disk.

Shapes: T tokens, F MLP width, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nanogpt_edit.checkpoint.tensors import tensor_sha256
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.memory import give_back
from nanogpt_edit.common.terminal import progress, say
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.sites import capture

PROBES = 32
FIRST_CHECK_TOKENS = 4096
BATCH_TOKENS = 4096
BAND = 512  # rows of C made at once
RIDGES = (1e-8, 1e-6, 1e-4)  # of C's mean eigenvalue, the first that is enough


@dataclass(frozen=True)
class Covariance:
    """C of one layer: `Covariance(matrix, layer=3, tokens=65_536, change=0.007, solve_change=0.02, converged=True)`."""

    matrix: Tensor
    """(F, F) float64 on the CPU."""
    layer: int
    tokens: int
    """Tokens it is the mean over."""
    change: float
    """‖C − C at half the tokens‖ / ‖C‖, which is also about how far C is off; from the last two checks."""
    solve_change: float
    """The same of C⁻¹k on probe keys (mean over probes), to first order."""
    converged: bool

    def describe(self) -> str:
        """One line for a person."""
        return description([self])

    def sha256(self) -> str:
        """Hash of the matrix, for the record."""
        return tensor_sha256(self.matrix)


@torch.no_grad()
def collect(
    model: GPT, blocks: Tensor, *, layers: Sequence[int], max_tokens: int, tolerance: float
) -> dict[int, Covariance]:
    """C of all `layers` in one pass over `blocks` (N, T), at most `max_tokens` tokens of it."""
    blocks = blocks[:, : model.config.block_size]
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))
    blocks = blocks[order][: max(1, max_tokens // blocks.shape[1])]
    per_batch = max(1, BATCH_TOKENS // blocks.shape[1])
    sums = {layer: _Sum(model.config.mlp_size) for layer in layers}
    next_check, seen_tokens = FIRST_CHECK_TOKENS, 0
    sites, top = [("mlp_key", layer) for layer in layers], max(layers)
    with progress("covariance", blocks.numel(), "tokens") as bar, capture(model, sites) as seen:
        for batch in blocks.split(per_batch):
            below = model.run_blocks(model.embed_tokens(batch.to(model.device)), stop=top)
            model.run_to_key(below, top)
            for layer in layers:
                sums[layer].add(seen["mlp_key", layer].flatten(0, 1))
            seen_tokens += batch.numel()
            checks = seen_tokens >= next_check or seen_tokens == blocks.numel()
            if checks:
                for total in sums.values():
                    total.check()
                next_check = 2 * seen_tokens
            bar.update(seen_tokens, change=max(total.change for total in sums.values()))
            if all(total.change < tolerance for total in sums.values()):
                break
            if checks and seen_tokens < blocks.numel():
                for total in sums.values():
                    total.keep()
    results = {layer: sums.pop(layer).result(layer, tolerance) for layer in layers}
    give_back()
    say(description(list(results.values())))
    return results


def description(found: Sequence[Covariance]) -> str:
    """One line for a person, of what one layer or several have over the same text."""
    several = len(found) > 1
    head = f"covariance of layer{'s' * several} {in_words([c.layer for c in found])}: {found[0].tokens:,} tokens"
    if not all(math.isfinite(each.change) for each in found):
        return f"{head}, too few to tell whether it has converged; give more text or raise covariance_tokens"
    change, solve = max(each.change for each in found), max(each.solve_change for each in found)
    left = [each.layer for each in found if not each.converged]
    which = f": {in_words(left)}" if len(left) < len(found) else ""
    verdict = f"not converged{which}; give more text or raise covariance_tokens" if left else "converged"
    most = "at most " * several
    return (
        f"{head}, over the last doubling C changed by {most}{change:.2%} and its inverse on probe keys by "
        f"{most}{solve:.2%} ({verdict})"
    )


def in_words(layers: Sequence[int]) -> str:
    """[0, 1, 2, 4] -> '0 to 2, 4'; the layers ascend."""
    runs = [[layer] for layer in layers[:1]]
    for layer in layers[1:]:
        if layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


class _Sum:
    """The running sum of one layer, and what it was at the check before; only the upper half of each is filled.

    A matrix of GPT-2 small has 75 MB: what is not needed whole is looked at in bands, and the sum becomes the result.
    """

    def __init__(self, width: int) -> None:
        self.total = torch.zeros(width, width, dtype=torch.float64)
        self.tokens = 0
        self.probes: Tensor | None = None  # (F, PROBES)
        self.before: tuple[Tensor, int] | None = None  # the sum and its tokens
        self.change = float("inf")

    def add(self, keys: Tensor) -> None:
        """`keys` (tokens, F). Products of one batch are made in float32, sums of batches in float64."""
        keys = keys.float()
        self.total = self.total.to(keys.device) if keys.device.type == "cuda" else self.total
        if self.probes is None:
            self.probes = keys[:: max(1, len(keys) // PROBES)][:PROBES].T.to(self.total.device).double()
        for rows, columns, product in _upper_blocks(keys):
            self.total[rows, columns] += product.to(self.total.device)
        self.tokens += len(keys)

    def check(self) -> None:
        """Measure the change since the sum that was kept."""
        if self.before is None:
            return
        before, tokens = self.before
        apart = size = 0.0
        for rows in _bands(len(before)):
            mean = self.total[rows, rows.start :] / self.tokens
            size += _square(mean)
            apart += _square(mean.sub_(before[rows, rows.start :], alpha=1 / tokens))
        self.change = (apart / size) ** 0.5 * self._per_doubling

    @property
    def _per_doubling(self) -> float:
        """What a change since the check before is multiplied by to be one over a doubling of the tokens.

        ‖C_n − C_m‖² is expected to be σ² (1/m − 1/n): σ²/n for n = 2 m, which is also how far C_n is off.
        """
        kept = self.tokens if self.before is None else self.before[1]
        return math.sqrt(kept / (self.tokens - kept)) if kept < self.tokens else 1.0

    def keep(self) -> None:
        """For the next check."""
        self.before = (self.total.clone(), self.tokens)

    def result(self, layer: int, tolerance: float) -> Covariance:
        """The mean. The sum is gone."""
        matrix = _both_halves(self.total.div_(self.tokens))
        return Covariance(
            solve_change=self._solve_change(matrix),
            matrix=matrix.cpu(),
            layer=layer,
            tokens=self.tokens,
            change=self.change,
            converged=self.change < tolerance,
        )

    def _solve_change(self, matrix: Tensor) -> float:
        """‖C⁻¹k − C_before⁻¹k‖ / ‖C⁻¹k‖ to first order in C − C_before, which is ‖C⁻¹(C − C_before) C⁻¹k‖ / ‖C⁻¹k‖ and
        takes one factorisation instead of two."""
        if self.before is None or self.probes is None:
            return float("inf")
        solve, (before, tokens) = _ridged_solver(matrix), self.before
        solved = solve(self.probes)
        moved = torch.zeros_like(solved)
        for rows in _bands(len(matrix)):
            apart = matrix[rows, rows.start :].sub(before[rows, rows.start :], alpha=1 / tokens)
            moved[rows] += apart @ solved[rows.start :]
            moved[rows.stop :] += apart[:, len(apart) :].T @ solved[rows]
        return self._per_doubling * float((solve(moved).norm(dim=0) / solved.norm(dim=0)).mean())


def factorise(covariance: Tensor) -> Tensor:
    """Cholesky factor of C with a ridge on its diagonal.

    The ridge gives a value to directions that no key of the text has (units of a ReLU that never fire, or fewer tokens
    than dimensions); others it moves by less than the covariance's own error. Where such directions have come out below
    zero, for the sum is made of float32 products, it is a larger one. Raises UserError where none is enough.
    """
    mean = covariance.trace() / len(covariance)
    if mean <= 0:
        raise UserError("the covariance is zero: the text gave no keys. Give more covariance text.")
    for ridge in RIDGES:
        ridged = covariance.clone()
        ridged.diagonal().add_(ridge * mean)
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if not bool(failed):
            return factor
    raise UserError(
        f"the covariance of {len(covariance)} dimensions cannot be factorised: the text gave too few different keys, "
        "or some that are not finite. Give more covariance text, or check the model's weights."
    )


def _upper_blocks(keys: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """kᵀk (F, F) in bands, only on and above the diagonal: C is symmetric, so that is half the work."""
    for rows in _bands(keys.shape[1]):
        columns = slice(rows.start, keys.shape[1])  # one product per band: wide enough to be fast
        yield rows, columns, keys.T[rows] @ keys[:, columns]


def _bands(width: int) -> list[slice]:
    return [slice(first, min(first + BAND, width)) for first in range(0, width, BAND)]


def _square(band: Tensor) -> float:
    """What the band (B, F') of an upper half, from the diagonal on, adds to the squared norm of the whole matrix."""
    right = torch.linalg.vector_norm(band[:, len(band) :])
    return float(2 * right**2 + torch.linalg.vector_norm(band[:, : len(band)]) ** 2)


def _both_halves(upper: Tensor) -> Tensor:
    """The lower half (F, F) filled in, in place."""
    for rows in _bands(len(upper)):
        square = upper[rows, rows]
        square.copy_(square.triu() + square.triu(1).T)
        upper[rows.stop :, rows] = upper[rows, rows.stop :].T
    return upper


def _ridged_solver(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """matrix⁻¹, with 1e-6 of its mean eigenvalue added: early in the pass it may be singular."""
    diagonal, ridge = matrix.diagonal(), 1e-6 * float(matrix.trace()) / len(matrix)
    own = diagonal.clone()
    diagonal += ridge
    factor, failed = torch.linalg.cholesky_ex(matrix)
    diagonal.copy_(own)
    # float32 products can leave a singular matrix with an eigenvalue below −ridge; the general solver takes it
    if bool(failed):
        return partial(torch.linalg.solve, matrix + ridge * torch.eye(len(matrix)).to(matrix))

    def solve(columns: Tensor) -> Tensor:
        halfway = torch.linalg.solve_triangular(factor, columns, upper=False)
        return torch.linalg.solve_triangular(factor.mT, halfway, upper=True)

    return solve
