"""MEMIT's algorithm 1 (Meng et al. 2023): the values of many facts written into the weights, layer by layer.

For every edited layer in turn, keys and the present state h are taken with the earlier layers already changed, the
residual v* − h is divided by the number of layers left, and the layer's ΔW is solved for. The changes are made on the
model itself, because later layers must see them.

MEMIT, ROME and AlphaEdit find the smallest change of a weight W (out, in) that adds the residuals R (out, n) at the
keys K (in, n), where "small" is measured on the keys the model usually sees, C = E[k kᵀ] (in, in):

    ΔW = argmin ‖ΔW K − R‖² + tr(ΔW A ΔWᵀ) = R Kᵀ (A + K Kᵀ)⁻¹

MEMIT (eq. 14): A = λ C. ROME is its limit for one key and λ → 0 (`rome.py`), AlphaEdit projects the keys first
(`alphaedit.py`). ΔW always has the form left · right with left = R, so a method's `LayerSolver` has only the right
factor (n, in) to give.

Shapes: N facts, M contexts of all of them, T tokens of a chunk's texts up to their subjects' last, D model width, F MLP
width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from nanogpt_edit.common.terminal import progress
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, first_rows, in_chunks, pad_rows
from nanogpt_edit.editing.covariance import factorise
from nanogpt_edit.editing.patch import edited_weight
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.ragged import Layout
from nanogpt_edit.model.sites import capture
from nanogpt_edit.model.tokenizer import tokenizer_of

CHUNK_TOKENS = 16_384  # tokens run at once; more cost no more memory than their states (T, D)


@progress("solving")
@torch.no_grad()
def write_values(
    model: GPT,
    facts: Sequence[LocatedFact],
    values: Tensor,
    edited: Mapping[int, EditedLayer],
    solvers: Mapping[int, LayerSolver],
    *,
    published: bool = False,
    again: bool = False,
) -> None:
    """Algorithm 1: solve for the layers of `edited` in turn, ascending, for `values` v* (N, D), and leave the batch's
    changes in the model.

    `published` takes the authors' mean keys, with the residual in the bare prompt. `again`: a further round of the
    same batch: the keys and the right factors stay, what is still missing of the (new) values goes into the left ones.
    """
    layers = list(edited)
    subjects = [SubjectStates(model, chunk, layers[0]) for chunk in in_chunks(facts, CHUNK_TOKENS)]
    counts = [len(fact.contexts) for fact in facts]
    shares = torch.tensor(counts, dtype=torch.float64).repeat_interleave(torch.tensor(counts)).to(subjects[0].x.device)
    wanted: Tensor | None = None
    for index, layer in enumerate(layers):
        chunks = [chunk.advance_to(model, layer, last_layer=layers[-1]) for chunk in subjects]
        keys, h = (torch.cat(each) for each in zip(*chunks, strict=True))  # (M, F), (M, D)
        if wanted is None:  # nothing of this round is in the model yet
            wanted = wanted_states(values.to(h), h, counts)
        residual = (wanted - h) / (len(layers) - index)
        if published:
            keys, residual = mean_keys(keys, facts), residual[first_rows(counts)]
        else:
            keys, residual = (each / shares[:, None].sqrt() for each in (keys, residual))
        if again:
            edited[layer].left[-1] += residual.T
        else:
            other_keys = partial(_other_keys, model, facts, layer)
            right = solvers[layer].right(keys.T, earlier=edited[layer].earlier_keys(), other_keys=other_keys)
            edited[layer].add(residual.T, right, keys.T)
        edited[layer].write()


def wanted_states(values: Tensor, h: Tensor, counts: Sequence[int]) -> Tensor:
    """What every context is to come to, (M, D): its own state `h` (M, D) plus its fact's δ.

    δ is v* minus the state in the fact's first context; `counts` are the facts' contexts.
    """
    deltas = values - h[first_rows(counts)]  # (N, D)
    return h + deltas.repeat_interleave(torch.tensor(counts, device=h.device), dim=0)


def mean_keys(keys: Tensor, facts: Sequence[LocatedFact]) -> Tensor:
    """One key of each fact, (N, F), from those of its contexts (M, F): the mean over the bare ones and the mean over
    those behind generated texts count half each, as in the authors' code."""
    found: list[Tensor] = []
    for fact, own in zip(facts, keys.split([len(fact.contexts) for fact in facts]), strict=True):
        kinds = (own[: fact.prompts], own[fact.prompts :])
        found.append(torch.stack([kind.mean(0) for kind in kinds if len(kind)]).mean(0))
    return torch.stack(found)


class LayerSolver(ABC):
    """What a method makes of one layer's keys; `covariance` C (F, F) is that of its ordinary keys, float64."""

    def __init__(self, covariance: Tensor, config: EditConfig) -> None:
        self.covariance, self.config = covariance, config
        name = config.traits.strength
        self.strength = 0.0 if name is None else float(getattr(config, name))
        """How much ordinary text is protected; may be changed from one solution to the next."""

    @abstractmethod
    def right(self, keys: Tensor, *, earlier: Tensor | None, other_keys: Callable[[], Tensor]) -> Tensor:
        """The right factor (N, F) of ΔW for `keys` (F, N).

        `earlier` (F, M) are the keys of the batches before. `other_keys` runs the texts once more for the summed k kᵀ
        (F, F) of their tokens but the subjects' last.
        """


class MemitSolver(LayerSolver):
    """A = λ C, and `context_weight` of the other tokens' keys beside C."""

    def __init__(self, covariance: Tensor, config: EditConfig) -> None:
        super().__init__(covariance, config)
        self.factor = factorise(covariance)
        if type(self) is MemitSolver and config.context_weight == 0 and not config.refines:
            del self.covariance  # as large as its factor, and not needed again; what derives from this may need it

    def right(self, keys: Tensor, *, earlier: Tensor | None, other_keys: Callable[[], Tensor]) -> Tensor:
        weight, factor = self.strength, self.factor
        if self.config.context_weight > 0:
            factor = factorise(self.covariance + self.config.context_weight / weight * other_keys())
        return memit_right(keys, factor, covariance_weight=weight)


def memit_right(keys: Tensor, factor: Tensor, *, covariance_weight: float) -> Tensor:
    """Kᵀ (λ C + K Kᵀ)⁻¹, (n, in), for `keys` (in, n) and `factor = factorise(C)`, float64.

    `covariance_weight` λ: how many times the usual keys count against each edited one; λ → ∞ changes nothing. Computed
    as (λ I + Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹, which is the same, needs C's factor only, and stays exact as λ → 0.
    """
    spread = torch.cholesky_solve(keys, factor)  # C⁻¹ K (in, n)
    identity = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    return torch.linalg.solve(covariance_weight * identity + keys.T @ spread, spread.T)


class EditedLayer:
    """One layer while it is edited: its weight as it was, and ΔW so far, batch by batch; float64."""

    def __init__(self, model: GPT, layer: int) -> None:
        self.weight = edited_weight(model, layer)
        self.original = self.weight.detach().clone()
        self.left: list[Tensor] = []  # (D, n)
        self.right: list[Tensor] = []  # (n, F)
        self.keys: list[Tensor] = []  # (F, n)
        self.beside: dict[str, tuple[Tensor, Tensor]] = {}
        """ΔW of the block's other matrices, by name: (out, n) and (n, in); they are not in the model."""

    def add(self, left: Tensor, right: Tensor, keys: Tensor) -> None:
        """The factors and the keys of a batch."""
        self.left.append(left)
        self.right.append(right)
        self.keys.append(keys)

    def earlier_keys(self) -> Tensor | None:
        return torch.cat(self.keys, dim=1) if self.keys else None

    @torch.no_grad()
    def write(self) -> None:
        """Leave ΔW in the model."""
        delta = torch.cat(self.left, dim=1) @ torch.cat(self.right, dim=0)
        self.weight.copy_(_double(self.original) + delta)

    @torch.no_grad()
    def restore(self) -> None:
        self.weight.copy_(self.original)

    def clear(self) -> None:
        """Forget what was added."""
        self.restore()
        for each in (self.left, self.right, self.keys):
            each.clear()


class SubjectStates:
    """Some facts' texts up to their subjects' last tokens, run up to the layer that is solved for next.

    Only their residual stream is kept. An edited block is run twice: to its keys, and with its new weight.
    """

    def __init__(self, model: GPT, facts: Sequence[LocatedFact], layer: int) -> None:
        texts = [row.token_ids[: row.subject_last + 1] for fact in facts for row in fact.contexts]
        self.row = Layout.of(texts, device=model.device)
        self.last = torch.stack([place[-1] for place in self.row.places])
        embedded = model.embed_tokens(self.row.token_ids, self.row.positions)
        self.x, self.layer = _run(model, embedded, self.row, 0, layer), layer  # (1, T, D)

    def advance_to(self, model: GPT, layer: int, *, last_layer: int) -> tuple[Tensor, Tensor]:
        """The keys (M, F) at `layer` of all contexts, and their states at the last layer, (M, D); float64.

        Layers come in ascending order, each with the weights of those below it final.
        """
        self.x, self.layer = _run(model, self.x, self.row, self.layer, layer), layer
        middle, key = model.run_to_key(self.x, layer, view=self.row.view, position_ids=self.row.positions)
        top = _run(model, model.run_from_key(middle, key, layer), self.row, layer + 1, last_layer + 1)
        return _double(key[0, self.last]), _double(top[0, self.last])


def _run(model: GPT, x: Tensor, row: Layout, start: int, stop: int) -> Tensor:
    return model.run_blocks(x, start=start, stop=stop, view=row.view, position_ids=row.positions)


def _other_keys(model: GPT, facts: Sequence[LocatedFact], layer: int) -> Tensor:
    """Σ k kᵀ (F, F), float64, over the tokens of the facts' texts and targets but the subjects' last; per context.

    The residuals are written where the subject ends. What they do at the other tokens of the same text is a side
    effect, and the one that hurts the edit itself most.
    """
    texts = [(*row.token_ids, *fact.target_ids[:-1]) for fact in facts for row in fact.contexts]
    token_ids = pad_rows(texts, pad_id=tokenizer_of(model).pad_id, device=model.device)
    is_other = torch.zeros(token_ids.shape, dtype=torch.bool, device=model.device)
    for i, (text, row) in enumerate(zip(texts, (row for fact in facts for row in fact.contexts), strict=True)):
        is_other[i, : len(text)] = True
        is_other[i, row.subject_last] = False
    contexts = len(texts) / len(facts)
    total = torch.zeros(model.config.mlp_size, model.config.mlp_size, dtype=torch.float64)
    chunk = max(1, CHUNK_TOKENS // token_ids.shape[1])
    with capture(model, [("mlp_key", layer)]) as seen:
        for part, other in zip(token_ids.split(chunk), is_other.split(chunk), strict=True):
            model.run_blocks(model.embed_tokens(part), stop=layer + 1)
            keys = _double(seen["mlp_key", layer][other])
            total = total.to(keys.device) + keys.T @ keys
    return total / contexts


def _double(tensor: Tensor) -> Tensor:
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
