"""Facts in, EditPatch out: values (`values.py`), then weights layer by layer (`memit.py`), batch after batch.

The changes are made on the model itself and undone in `finally`: when `edit_model` returns or fails, the weights are
bitwise what they were. A model in half precision is edited in float32 (small steps would be lost in bfloat16's eight
bits); its patch is made for the weights as they are.

With `batch_size`, the facts are edited in sequence, batch after batch, each on the weights the ones before left behind.
ROME is the sequence of single facts on one layer.

Shapes: N facts, D model width, F MLP width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_edit.checkpoint.tensors import tensor_sha256
from nanogpt_edit.common.errors import UserError, quoted
from nanogpt_edit.common.terminal import progress, say
from nanogpt_edit.common.version import __version__
from nanogpt_edit.data.fact_files import check_changes
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.choose import settled, suited
from nanogpt_edit.editing.config import METHODS, EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, generate_prefixes, locate_facts
from nanogpt_edit.editing.covariance_cache import covariances
from nanogpt_edit.editing.methods.anchor import NormAnchor
from nanogpt_edit.editing.methods.memit import EditedLayer, LayerSolver, write_values
from nanogpt_edit.editing.methods.table import DESCENTS, find_solver, solver_of
from nanogpt_edit.editing.patch import EditedFact, EditPatch, LayerUpdate, on_grid
from nanogpt_edit.editing.records import Tried
from nanogpt_edit.editing.refine import OrdinaryText, refine_batch
from nanogpt_edit.editing.sinks import leave_out_sinks
from nanogpt_edit.editing.values import FOUND, TargetValues, optimise_values
from nanogpt_edit.model.frozen import freeze, thaw
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of


def edit_model(
    model: GPT,
    facts: Sequence[Fact],
    config: EditConfig | None = None,
    *,
    covariance_blocks: Tensor | None = None,
    cache_dir: Path | None = None,
) -> EditPatch:
    """The patch that makes `model` say every fact's `target_new`; the model itself is left as it is.

    `covariance_blocks` (N, T) are token ids of ordinary text (needed by the methods that find values); covariances
    are kept in `cache_dir`. Raises UserError for a layer the model does not have, a subject that is not in its prompt,
    or two facts that ask different answers of one prompt.
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
    """As `edit_model`, with values v* (N, D) known from earlier patches: only keys and weights are computed
    anew, and in further `rounds` what these weights do not say."""
    if config.method not in METHODS:  # named by a file: nothing that it names is imported
        raise UserError(f"a patch of {config.method}, a method of your own, is not solved again; edit anew with it.")
    known = TargetValues(
        values=values,
        probabilities=tuple(e.probability for e in edited),
        shifts=tuple(e.shift for e in edited),
        steps=tuple(e.steps for e in edited),
    )
    as_they_are = replace(config, anchor_norms=False)
    patch = _edit(model, [e.fact for e in edited], as_they_are, covariance_blocks, cache_dir, known_values=known)
    return replace(patch, config=config)


@progress("editing")
@torch.inference_mode(False)  # values are found by descent, also where the caller wants no gradients
def _edit(
    model: GPT,
    facts: Sequence[Fact],
    config: EditConfig,
    covariance_blocks: Tensor | None,
    cache_dir: Path | None,
    known_values: TargetValues | None,
) -> EditPatch:
    started = time.perf_counter()
    _check_facts(model, facts)
    if config.traits.whole_model:
        config = replace(config, layers=tuple(range(model.config.n_layer)))
    tried: tuple[Tried, ...] = ()
    given, chooses = config, config.preset == "auto" and known_values is None
    if chooses:
        bare = locate_facts(model, facts, (), allow_partial=config.allow_partial_subject)
        config, tried = suited(model, bare, config, covariance_blocks)
    _check_settings(model, config)
    with _lent(model, config) as layers:
        prefixes = generate_prefixes(model, config)
        partial = config.allow_partial_subject
        located = locate_facts(model, facts, prefixes, allow_partial=partial, full_stop=config.full_stop)
        hashes: dict[int, str] = {}
        if config.traits.finds_values:
            if covariance_blocks is None:
                raise UserError(f"{config.method} needs covariance_blocks, the token ids of ordinary text.")
            _note_unreachable(model, located, config)
            if not config.published:
                located = leave_out_sinks(model, located, config.layers[-1])
            solvers, hashes = _solvers(model, covariance_blocks, config, cache_dir)
            if chooses:
                config, known_values, further = settled(
                    model, located, config, layers, solvers, covariance_blocks, given=given
                )
                tried += further
            batches = _edit_in_batches(model, located, config, layers, solvers, covariance_blocks, known_values)
        else:
            batches = DESCENTS[config.method](model, located, config, layers)
    return replace(_patch(model, located, batches, config, layers, hashes, started), tried=tried)


@contextmanager
def _lent(model: GPT, config: EditConfig) -> Iterator[dict[int, EditedLayer]]:
    """The model to be edited in these layers: in at least float32, whatever autocast is around it, and without slopes
    of its own. Afterwards it is bitwise what it was."""
    was_training, dtype, learning = model.training, model.dtype, freeze(model.parameters())
    layers: dict[int, EditedLayer] = {}
    try:
        model.eval().to(torch.promote_types(dtype, torch.float32))  # exact, there and back
        layers |= {layer: EditedLayer(model, layer) for layer in config.edited_layers}
        with torch.autocast(model.device.type, enabled=False):
            yield layers
    finally:
        thaw(learning)
        for layer in layers.values():
            layer.restore()
        model.to(dtype).train(was_training)


def _solvers(
    model: GPT, blocks: Tensor, config: EditConfig, cache_dir: Path | None
) -> tuple[dict[int, LayerSolver], dict[int, str]]:
    """What solves for each edited layer, and the hash of the C that it has."""
    ordinary = covariances(
        model,
        blocks,
        layers=config.edited_layers,
        max_tokens=config.covariance_tokens,
        tolerance=config.covariance_tolerance,
        cache_dir=cache_dir,
    )
    solvers = {layer: solver_of(each, config, model.device) for layer, each in ordinary.items()}
    return solvers, {layer: each.sha256() for layer, each in ordinary.items()}


def _edit_in_batches(
    model: GPT,
    located: Sequence[LocatedFact],
    config: EditConfig,
    layers: Mapping[int, EditedLayer],
    solvers: Mapping[int, LayerSolver],
    blocks: Tensor,
    known_values: TargetValues | None,
) -> list[TargetValues]:
    """The values of all batches in turn; their changes stay in the model."""
    text = OrdinaryText.of(model, blocks, config) if config.refines and config.refine_kl > 0 else None
    done: list[TargetValues] = []
    anchor, added = NormAnchor(), set[int]()
    size = config.facts_at_once(len(located))
    unsaid = replace(config, stop_probability=min(FOUND, config.stop_probability))
    for first in range(0, len(located), size):
        batch = located[first : first + size]
        if known_values is None:
            values = optimise_values(model, batch, config)
        else:
            values = known_values.part(first, first + size)
        if config.anchor_norms:
            values = anchor(model, batch, values, config.layers[-1])
        done.append(values)
        write_values(model, batch, values.values, layers, solvers, published=config.published)
        for _ in range(config.rounds - 1):
            values = optimise_values(model, batch, unsaid)
            missing = {first + i for i, shift in enumerate(values.shifts) if shift > 0}
            if not missing:
                break
            write_values(model, batch, values.values, layers, solvers, again=True)
            added |= missing
        if config.refines:
            refine_batch(model, batch, config, layers, solvers, text)
    if added:
        most = f"p {unsaid.stop_probability:g}"
        say(f"Edit: {len(added)} of {len(located)} facts had less than {most} with the new weights and were added to.")
    return done


def check_edit(model: GPT, facts: Sequence[Fact], config: EditConfig) -> None:
    """Raise UserError, without editing, for layers `model` does not have and facts it cannot be told."""
    _check_facts(model, facts)
    if config.preset != "auto":
        _check_settings(model, config)
    locate_facts(model, facts, (), allow_partial=config.allow_partial_subject)


def _check_settings(model: GPT, config: EditConfig) -> None:
    if config.method not in DESCENTS:
        find_solver(config.method)
    if config.layers[0] < 0 or config.layers[-1] >= model.config.n_layer:
        raise UserError(
            f"layers {list(config.layers)} are not all in the model, which has layers 0 to {model.config.n_layer - 1}."
        )
    if config.n_prefixes and config.prefix_tokens >= model.config.block_size:
        raise UserError(
            f"is {config.prefix_tokens} and the model reads {model.config.block_size} tokens; a prefix stands before a "
            "prompt.",
            field="prefix_tokens",
        )


def _check_facts(model: GPT, facts: Sequence[Fact]) -> None:
    if not facts:
        raise UserError("there are no facts to edit; the list is empty.")
    markup = tokenizer_of(model).markup
    for fact in facts:
        texts = (fact.prompt, fact.target_new, *fact.rewordings)
        if held := [text for text in markup if any(text in part for part in texts)]:
            raise UserError(
                f"fact {quoted(fact.prompt)}: it holds {held[0]}, a special token of the model's; take it out."
            )
    check_changes({f"fact {number}": fact for number, fact in enumerate(facts)})
    asked: dict[str, str] = {}
    for fact in facts:
        for prompt in (fact.prompt, *fact.rewordings):
            before = asked.setdefault(prompt.strip(), fact.target_new.strip())
            if before != fact.target_new.strip():
                raise UserError(
                    f"two facts ask different answers of {quoted(prompt)}: {quoted(before)} and "
                    f"{quoted(fact.target_new)}; drop one."
                )


def _note_unreachable(model: GPT, located: Sequence[LocatedFact], config: EditConfig) -> None:
    """What the last block writes no later token reads: say so where the subject does not end the prompt."""
    early = [fact for fact in located if fact.bare.subject_last + 1 < len(fact.bare.token_ids)]
    if config.layers[-1] == model.config.n_layer - 1 and early:
        say(
            f"Layer {config.layers[-1]} is the model's last: a value put there at the subject's last token reaches no "
            f'later one, so {len(early)} of {len(located)} facts cannot be edited (as "{early[0].fact.prompt}"). '
            "Choose layers that end lower."
        )


def _patch(
    model: GPT,
    located: Sequence[LocatedFact],
    batches: Sequence[TargetValues],
    config: EditConfig,
    edited_layers: Mapping[int, EditedLayer],
    hashes: Mapping[int, str],
    started: float,
) -> EditPatch:
    values = TargetValues.joined(batches)
    beside = {name: both for layer in edited_layers.values() for name, both in layer.beside.items()}
    made = [values.values, *(each for both in beside.values() for each in both)]
    made += [each for layer in edited_layers.values() for each in (*layer.left, *layer.right)]
    if not all(bool(each.isfinite().all()) for each in made):
        raise UserError(
            "the edit came to NaN or infinite numbers: the model's weights hold some (nanogpt-edit info tells), or "
            "learning_rate or clamp is far too large."
        )
    edited = tuple(
        EditedFact(fact.fact, fact.lookup, probability, shift, steps, columns=_columns(fact, config))
        for fact, probability, shift, steps in zip(
            located, values.probabilities, values.shifts, values.steps, strict=True
        )
    )
    patch = EditPatch(
        layers={layer: _layer_update(each, hashes.get(layer, "")) for layer, each in edited_layers.items()},
        beside={name: _update_beside(model, name, *both) for name, both in beside.items()},
        values=values.values.float().contiguous(),
        edited=edited,
        config=config,
        batches=tuple(len(batch.steps) for batch in batches),
        seconds=time.perf_counter() - started,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"nanogpt_edit": __version__, "torch": str(torch.__version__)},
    )
    return patch.bound_to(model)


def _columns(fact: LocatedFact, config: EditConfig) -> int:
    return len(fact.contexts) if config.traits.finds_values and not config.published else 1


def _layer_update(layer: EditedLayer, covariance_sha256: str) -> LayerUpdate:
    left, right = on_grid(torch.cat(layer.left, dim=1).cpu(), torch.cat(layer.right, dim=0).cpu())
    return LayerUpdate(
        left=left.contiguous(),
        right=right.contiguous(),
        keys=torch.cat(layer.keys, dim=1).float().cpu().contiguous(),
        expected_sha256=tensor_sha256(layer.weight),
        covariance_sha256=covariance_sha256,
    )


def _update_beside(model: GPT, name: str, left: Tensor, right: Tensor) -> LayerUpdate:
    left, right = on_grid(left.cpu(), right.cpu())
    expected = tensor_sha256(model.get_parameter(name))
    return LayerUpdate(left, right, keys=torch.zeros(right.shape[1], 0), expected_sha256=expected)
