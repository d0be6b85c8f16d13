"""UltraEdit (Gu et al. 2025): one step along slopes, without values, without subjects, without other text.

At every token that predicts one of an answer's, each edited matrix has a key h (what it reads) and a slope g, that of
the answer's NLL at what it writes. Both are normalised by the mean and deviation of all features (h, g) seen so far,
in every batch before as well ("lifelong"), and what the matrix is to write in addition is

    v = −η ‖ĥ‖² ĝ        ΔW = argmin ‖ΔW H − V‖² + ‖ΔW‖² = V (HᵀH + I)⁻¹ Hᵀ        H (F, M), V (D, M)

with the keys as they are, not normalised, in the solution (as the authors' code has it). All matrices of one size
share their statistics. The authors edit gates and first matrices of MLPs, too; here, as for every method, it is the
second ones of `layers`.

Shapes: N facts, M tokens that predict an answer's, D model width, F MLP width, L edited layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from nanogpt_edit.common.terminal import progress
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, in_chunks
from nanogpt_edit.editing.methods.answers import Answers, no_values
from nanogpt_edit.editing.methods.memit import EditedLayer
from nanogpt_edit.editing.values import TargetValues
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.sites import SiteKey, patch

CHUNK_TOKENS = 4096  # tokens run at once; bounds memory, does not change the result
Features = dict[int, tuple[Tensor, Tensor]]
"""By layer, keys (M, F) and slopes (M, D), float64."""


def ultraedit(
    model: GPT, facts: Sequence[LocatedFact], config: EditConfig, edited: Mapping[int, EditedLayer]
) -> list[TargetValues]:
    """Leave ΔW in the model and in `edited`, batch after batch; there are no values of single facts."""
    seen, done, size = Moments(), list[TargetValues](), config.facts_at_once(len(facts))
    with progress("editing", len(facts), "facts") as bar:
        for first in range(0, len(facts), size):
            batch = facts[first : first + size]
            features = answer_features(model, batch, list(edited))
            for keys, slopes in features.values():
                seen.add(torch.cat((keys, slopes), dim=1))
            for layer, (keys, slopes) in features.items():
                left = shifts(keys, slopes, seen, rate=config.ultraedit_rate).T
                edited[layer].add(left, ridge_right(keys.T), torch.zeros(keys.shape[1], 0))
                edited[layer].write()
            done.append(no_values(_nll(model, batch, min(edited)), steps=1, width=model.config.n_embd))
            bar.update(first + len(batch))
    return done


def shifts(keys: Tensor, slopes: Tensor, seen: Moments, *, rate: float) -> Tensor:
    """Vᵀ = −η ‖ĥ‖² ĝ, (M, D), from keys (M, F) and slopes (M, D)."""
    normal = seen.normalise(torch.cat((keys, slopes), dim=1))
    key, slope = normal.split((keys.shape[1], slopes.shape[1]), dim=1)
    return -rate * key.square().sum(1, keepdim=True) * slope


def ridge_right(keys: Tensor) -> Tensor:
    """(KᵀK + I)⁻¹ Kᵀ, (M, F), for `keys` (F, M): the right factor of ridge regression."""
    gram = keys.T @ keys
    return torch.linalg.solve(gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device), keys.T)


class Moments:
    """Mean and deviation of all rows ever added (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean, self.squares = torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """`rows` (M, width)."""
        new = len(rows)
        mean = rows.mean(0)
        apart = mean - self.mean
        both = self.count + new
        self.squares = self.squares + (rows - mean).square().sum(0) + apart.square() * self.count * new / both
        self.mean = self.mean + apart * new / both
        self.count = both

    def normalise(self, rows: Tensor) -> Tensor:
        """(rows − mean) / deviation; what never varies becomes 0."""
        deviation = (self.squares / max(self.count - 1, 1)).sqrt()
        return (rows - self.mean) / deviation.masked_fill(deviation == 0, torch.inf)


def answer_features(model: GPT, facts: Sequence[LocatedFact], layers: Sequence[int]) -> Features:
    """Keys and slopes of all answers' tokens, the facts in order; the slope is that of a token's own NLL."""
    chunks = in_chunks(facts, CHUNK_TOKENS)
    parts = [_features(model, Answers.of(model, chunk, layer=layers[0]), layers) for chunk in chunks]
    return {
        layer: (torch.cat([part[layer][0] for part in parts]), torch.cat([part[layer][1] for part in parts]))
        for layer in layers
    }


@torch.enable_grad()
def _features(model: GPT, answers: Answers, layers: Sequence[int]) -> Features:
    keys: dict[int, Tensor] = {}
    added = {layer: torch.zeros_like(answers.below, requires_grad=True) for layer in layers}
    changes: dict[SiteKey, Callable[[Tensor], Tensor]] = {}
    for layer in layers:

        def look(key: Tensor, layer: int = layer) -> Tensor:
            keys[layer] = key.detach()
            return key

        changes |= {("mlp_key", layer): look, ("mlp_out", layer): added[layer].__add__}
    with patch(model, changes):
        nats = (answers.nll(model) * answers.lengths).sum()  # each token counts once, whatever its answer's length
    slopes = torch.autograd.grad(nats, list(added.values()))
    rows = torch.arange(len(answers.read), device=answers.read.device)[:, None].expand_as(answers.read)
    place = rows[answers.is_target], answers.read[answers.is_target]
    return {
        layer: (keys[layer][place].double(), slope[place].double()) for layer, slope in zip(layers, slopes, strict=True)
    }


@torch.no_grad()
def _nll(model: GPT, facts: Sequence[LocatedFact], layer: int) -> Tensor:
    return torch.cat([Answers.of(model, chunk, layer=layer).nll(model) for chunk in in_chunks(facts, CHUNK_TOKENS)])
