"""Facts in, EditPatch out: values, then keys and weights layer by layer (MEMIT's algorithm 1; see `solve.py`).

For every edited layer in turn, keys and the present state h are taken with the earlier layers already changed, the
residual v* − h is divided by the number of layers left, and the layer's ΔW is solved for. The changes are made on the
model itself, because later layers must see them, and undone in `finally`: when `edit_model` returns or fails, the
weights are bitwise what they were.

With `batch_size`, the facts are edited in sequence, batch after batch, each on the weights the ones before left behind.
ROME is the sequence of single facts on one layer.

Shapes: N facts, C contexts, S longest text up to a subject's last token, D model width, F MLP width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

import nanogpt_edit
from nanogpt_edit.edit import solve
from nanogpt_edit.edit.config import EditConfig
from nanogpt_edit.edit.contexts import LocatedFact, generate_prefixes, locate_facts, pad_rows, tokenizer_of
from nanogpt_edit.edit.covariance import Covariance
from nanogpt_edit.edit.covariance_files import covariances
from nanogpt_edit.edit.facts import Fact
from nanogpt_edit.edit.finetune import finetuned_delta
from nanogpt_edit.edit.patch import EditedFact, EditPatch, LayerUpdate, edited_weight, on_grid
from nanogpt_edit.edit.refine import OrdinaryText, Update, refine_residuals
from nanogpt_edit.edit.values import TargetValues, optimise_values
from nanogpt_edit.errors import UserError
from nanogpt_edit.model.checkpoint import weight_sha256
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.sites import capture

CHUNK_TOKENS = 16_384  # tokens run at once when keys are taken; bounds memory


def edit_model(
    model: GPT,
    facts: Sequence[Fact],
    config: EditConfig | None = None,
    *,
    covariance_blocks: Tensor | None = None,
    cache_dir: Path | None = None,
) -> EditPatch:
    """The patch that makes `model` say every fact's `target_new`; the model itself is left as it is.

    `covariance_blocks` (N, T) are token ids of ordinary text (needed by all methods but ft); covariances are kept in
    `cache_dir`. Raises UserError for a layer the model does not have, a subject that is not in its prompt, or two facts
    that ask different answers of one prompt.
    """
    return _edit(model, facts, config or EditConfig(), covariance_blocks, cache_dir, known_values=None)


def solve_again(
    model: GPT,
    edited: Sequence[EditedFact],
    values: Tensor,
    config: EditConfig,
    *,
    covariance_blocks: Tensor | None = None,
    cache_dir: Path | None = None,
) -> EditPatch:
    """As `edit_model`, with values v* (N, D) known from earlier patches: only keys and weights are computed anew."""
    known = TargetValues(
        values=values,
        probabilities=tuple(e.probability for e in edited),
        shifts=tuple(e.shift for e in edited),
        steps=tuple(e.steps for e in edited),
    )
    return _edit(model, [e.fact for e in edited], config, covariance_blocks, cache_dir, known_values=known)


def _edit(
    model: GPT,
    facts: Sequence[Fact],
    config: EditConfig,
    covariance_blocks: Tensor | None,
    cache_dir: Path | None,
    known_values: TargetValues | None,
) -> EditPatch:
    started = time.perf_counter()
    _check(model, facts, config)
    was_training = model.training
    model.eval()
    layers = config.edited_layers
    originals = {layer: edited_weight(model, layer).detach().clone() for layer in layers}
    found: dict[int, Covariance] = {}
    try:
        located = locate_facts(
            model, facts, generate_prefixes(model, config), allow_partial=config.allow_partial_subject
        )
        if config.method == "ft":
            sums, parts = _finetune(model, located, config)
        else:
            if covariance_blocks is None:
                raise UserError(f"{config.method} needs covariance_blocks, the token ids of ordinary text.")
            found = covariances(
                model,
                covariance_blocks,
                layers=layers,
                max_tokens=config.covariance_tokens,
                tolerance=config.covariance_tolerance,
                cache_dir=cache_dir,
            )
            refines = config.refine_steps > 0 and config.refine_kl > 0
            text = OrdinaryText.of(model, covariance_blocks, config) if refines else None
            sums, parts = _edit_in_batches(model, located, config, found, originals, known_values, text)
    finally:
        with torch.no_grad():
            for layer, original in originals.items():
                edited_weight(model, layer).copy_(original)
        model.train(was_training)
    return _patch(model, located, parts, config, sums, found, started)


def _edit_in_batches(
    model: GPT,
    located: Sequence[LocatedFact],
    config: EditConfig,
    found: dict[int, Covariance],
    originals: dict[int, Tensor],
    known_values: TargetValues | None,
    text: OrdinaryText | None,
) -> tuple[dict[int, _Parts], list[TargetValues]]:
    """All batches in turn; their changes stay in the model."""
    terrains = {layer: _Terrain.of(found[layer], config, model.device) for layer in originals}
    sums = {layer: _Parts() for layer in originals}
    parts: list[TargetValues] = []
    size = 1 if config.method == "rome" else (config.batch_size or len(located))
    for first in range(0, len(located), size):
        batch = located[first : first + size]
        for round_ in range(config.rounds):
            if known_values is not None:
                found_values = _slice(known_values, first, first + size)
            else:
                found_values = optimise_values(model, batch, config)
            _solve_batch(model, batch, found_values.values, config, terrains, originals, sums, again=round_ > 0)
        if config.refine_steps and config.method in ("memit", "alphaedit"):
            _refine_batch(model, batch, config, terrains, originals, sums, text)
        parts.append(found_values)
    return sums, parts


def _check(model: GPT, facts: Sequence[Fact], config: EditConfig) -> None:
    if not facts:
        raise UserError("there are no facts to edit; the list is empty.")
    if config.layers[0] < 0 or config.layers[-1] >= model.config.n_layer:
        raise UserError(
            f"layers {list(config.layers)} are not all in the model, which has layers 0 to {model.config.n_layer - 1}."
        )
    asked: dict[str, str] = {}
    for fact in facts:
        for prompt in (fact.prompt, *fact.rewordings):
            before = asked.setdefault(prompt.strip(), fact.target_new.strip())
            if before != fact.target_new.strip():
                raise UserError(
                    f'two facts ask different answers of "{prompt}": "{before}" and "{fact.target_new}"; drop one.'
                )


@dataclass(frozen=True)
class _Terrain:
    """What a layer's solver needs of its covariance, in the form the method wants; float64."""

    covariance: Tensor  # C
    factor: Tensor | None = None  # memit, rome: of C
    projector: Tensor | None = None  # alphaedit: on C's null space

    @classmethod
    def of(cls, covariance: Covariance, config: EditConfig, device: torch.device) -> _Terrain:
        matrix = covariance.matrix.to("cpu" if device.type == "mps" else device)
        if config.method == "alphaedit":
            return cls(matrix, projector=solve.null_space_projector(matrix, null_share=config.null_share))
        return cls(matrix, factor=solve.factorise(matrix))

    def right(self, keys: Tensor, others: Tensor | None, config: EditConfig, earlier_keys: Tensor | None) -> Tensor:
        """The right factor (N, F) of this batch's ΔW, for `keys` (F, N).

        `others` (F, F), the summed k kᵀ of the prompts' other tokens, joins MEMIT's λ C with `context_weight`.
        """
        if self.projector is not None:
            ridge = config.ridge * float(self.covariance.trace())
            return solve.alphaedit_right(keys, self.projector, ridge=ridge, earlier_keys=earlier_keys)
        assert self.factor is not None
        if config.method == "rome":
            return solve.rome_right(keys, self.factor)
        factor = self.factor
        if others is not None:
            factor = solve.factorise(self.covariance + config.context_weight / config.covariance_weight * others)
        return solve.memit_right(keys, factor, covariance_weight=config.covariance_weight)


class _Parts:
    """One layer's left, right and keys, batch by batch; float64."""

    def __init__(self) -> None:
        self.left: list[Tensor] = []  # (D, n)
        self.right: list[Tensor] = []  # (n, F)
        self.keys: list[Tensor] = []  # (F, n)

    def add(self, left: Tensor, right: Tensor, keys: Tensor) -> None:
        self.left.append(left)
        self.right.append(right)
        self.keys.append(keys)

    def earlier_keys(self) -> Tensor | None:
        return torch.cat(self.keys, dim=1) if self.keys else None

    def delta(self) -> Tensor:
        return torch.cat(self.left, dim=1) @ torch.cat(self.right, dim=0)


@torch.no_grad()
def _solve_batch(
    model: GPT,
    facts: Sequence[LocatedFact],
    values: Tensor,
    config: EditConfig,
    terrains: dict[int, _Terrain],
    originals: dict[int, Tensor],
    sums: dict[int, _Parts],
    *,
    again: bool = False,
) -> None:
    """Solve for all layers in turn and leave the batch's changes in the model.

    `again`: a further round of the same batch. The keys and the right factors stay, what is still missing of the (new)
    values is added to the left ones.
    """
    layers, contexts = config.edited_layers, len(facts[0].contexts)
    rows = [row.token_ids[: row.subject_last + 1] for fact in facts for row in fact.contexts]
    token_ids = pad_rows(rows, pad_id=tokenizer_of(model).pad_id, device=model.device)
    last = torch.tensor([len(row) - 1 for row in rows], device=model.device)  # (N·C,)
    x = _run(model, model.embed_tokens(token_ids), 0, layers[0])  # (N·C, S, D)
    everyone = torch.arange(len(rows), device=model.device)
    for index, layer in enumerate(layers):
        middle, key = _run_to_key(model, x, layer)  # (N·C, S, D), (N·C, S, F)
        mean_key = _double(key[everyone, last]).unflatten(0, (-1, contexts)).mean(1).T  # (F, N)
        bare = model.run_from_key(middle[::contexts], key[::contexts], layer)
        bare = _run(model, bare, layer + 1, layers[-1] + 1)  # (N, S, D)
        h = _double(bare[everyone[: len(bare)], last[::contexts]])
        residual = ((values.to(h.device).double() - h) / (len(layers) - index)).T  # (D, N)
        if again:
            sums[layer].left[-1] += residual
        else:
            others = _other_keys(model, facts, layer) if config.context_weight > 0 else None
            right = terrains[layer].right(mean_key, others, config, sums[layer].earlier_keys())
            sums[layer].add(residual, right, mean_key)
        changed = _double(originals[layer]) + sums[layer].delta()
        edited_weight(model, layer).copy_(changed)
        if index + 1 < len(layers):
            x = _run(model, model.run_from_key(middle, key, layer), layer + 1, layers[index + 1])


def _refine_batch(
    model: GPT,
    facts: Sequence[LocatedFact],
    config: EditConfig,
    terrains: dict[int, _Terrain],
    originals: dict[int, Tensor],
    sums: dict[int, _Parts],
    text: OrdinaryText | None,
) -> None:
    """Descend on the residuals of the batch just solved (see `refine`), and leave the better ones in the model."""
    updates = {
        layer: Update(parts.left[-1], parts.right[-1], parts.keys[-1], terrains[layer].covariance)
        for layer, parts in sums.items()
    }
    for layer, left in refine_residuals(model, facts, updates, config, text).items():
        sums[layer].left[-1] = left
        with torch.no_grad():
            edited_weight(model, layer).copy_(_double(originals[layer]) + sums[layer].delta())


def _run(model: GPT, x: Tensor, start: int, stop: int) -> Tensor:
    if start == stop:
        return x
    return torch.cat([model.run_blocks(part, start=start, stop=stop) for part in x.split(_rows_at_once(x))])


def _run_to_key(model: GPT, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    halves = [model.run_to_key(part, layer) for part in x.split(_rows_at_once(x))]
    return torch.cat([middle for middle, _ in halves]), torch.cat([key for _, key in halves])


def _rows_at_once(x: Tensor) -> int:
    return max(1, CHUNK_TOKENS // x.shape[1])


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
    total = torch.zeros(model.config.mlp_size, model.config.mlp_size, dtype=torch.float64)
    chunk = max(1, CHUNK_TOKENS // token_ids.shape[1])
    with capture(model, [("mlp_key", layer)]) as seen:
        for part, other in zip(token_ids.split(chunk), is_other.split(chunk), strict=True):
            model.run_blocks(model.embed_tokens(part), stop=layer + 1)
            keys = _double(seen["mlp_key", layer][other])
            total = total.to(keys.device) + keys.T @ keys
    return total / len(facts[0].contexts)


def _double(tensor: Tensor) -> Tensor:
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _finetune(
    model: GPT, located: Sequence[LocatedFact], config: EditConfig
) -> tuple[dict[int, _Parts], list[TargetValues]]:
    delta, probabilities, steps = finetuned_delta(model, located, config)
    n, parts = len(located), _Parts()
    parts.add(torch.eye(len(delta), dtype=torch.float64), delta.double().cpu(), torch.zeros(delta.shape[1], n))
    values = TargetValues(
        values=torch.zeros(n, model.config.n_embd),
        probabilities=probabilities,
        shifts=(0.0,) * n,
        steps=(steps,) * n,
    )
    return {config.edited_layers[0]: parts}, [values]


def _patch(
    model: GPT,
    located: Sequence[LocatedFact],
    parts_of_values: Sequence[TargetValues],
    config: EditConfig,
    sums: dict[int, _Parts],
    found: dict[int, Covariance],
    started: float,
) -> EditPatch:
    values = _joined(parts_of_values)
    layers: dict[int, LayerUpdate] = {}
    for layer, parts in sums.items():
        left, right = on_grid(torch.cat(parts.left, dim=1).cpu(), torch.cat(parts.right, dim=0).cpu())
        layers[layer] = LayerUpdate(
            left=left.contiguous(),
            right=right.contiguous(),
            keys=torch.cat(parts.keys, dim=1).float().cpu().contiguous(),
            expected_sha256=weight_sha256(edited_weight(model, layer)),
            covariance_sha256=found[layer].sha256() if layer in found else "",
        )
    edited = tuple(
        EditedFact(fact.fact, fact.lookup, probability, shift, steps)
        for fact, probability, shift, steps in zip(
            located, values.probabilities, values.shifts, values.steps, strict=True
        )
    )
    patch = EditPatch(
        layers=layers,
        values=values.values.float().contiguous(),
        edited=edited,
        config=config,
        batches=tuple(len(part.steps) for part in parts_of_values),
        seconds=time.perf_counter() - started,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"nanogpt_edit": nanogpt_edit.__version__, "torch": str(torch.__version__)},
    )
    return patch.bound_to(model)


def _slice(values: TargetValues, first: int, end: int) -> TargetValues:
    return TargetValues(
        values=values.values[first:end],
        probabilities=values.probabilities[first:end],
        shifts=values.shifts[first:end],
        steps=values.steps[first:end],
    )


def _joined(parts: Sequence[TargetValues]) -> TargetValues:
    return TargetValues(
        values=torch.cat([part.values for part in parts]),
        probabilities=tuple(p for part in parts for p in part.probabilities),
        shifts=tuple(s for part in parts for s in part.shifts),
        steps=tuple(s for part in parts for s in part.steps),
    )
