"""The part of `gpu.py` that looks at an edit: covariance, values, solution, the whole of it, and a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from edit_speed import fifty_facts, ten_token_fact
from gpu_setting import Found, Setting
from machine import device_memory, timed
from torch import Tensor

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, generate_prefixes, locate_facts
from nanogpt_edit.editing.covariance import Covariance, collect
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.methods.memit import EditedLayer, write_values
from nanogpt_edit.editing.methods.table import solver_of
from nanogpt_edit.editing.values import optimise_values
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.tracing.config import TraceConfig
from nanogpt_edit.tracing.tracing import trace_facts

Result = TypeVar("Result")


def edit(setting: Setting) -> Found:
    """Seconds of an edit's pieces, each the second time that it is done; in float32, as edits are made."""
    sizes, model = setting.sizes, checkpoint.load(setting.checkpoint, device=setting.device, dtype=torch.float32)
    model.requires_grad_(False)
    tokens = sizes.covariance_tokens
    config, facts = setting.edit_config(model, covariance_tokens=tokens), fifty_facts()[: sizes.facts]
    blocks = setting.ordinary_text(model, tokens=tokens)
    located = locate_facts(model, facts, generate_prefixes(model, config))
    found, covariance_seconds = second_time(
        lambda: collect(model, blocks, layers=config.layers, max_tokens=tokens, tolerance=0.0)
    )
    values, values_seconds = second_time(lambda: optimise_values(model, located, config))
    _, solve_seconds = second_time(lambda: solve(model, located, values.values, config, found))
    patch, whole_seconds = second_time(lambda: edit_model(model, facts, config, covariance_blocks=blocks))
    traced = [ten_token_fact(model)] * sizes.traced
    _, trace_seconds = second_time(lambda: trace_facts(model, traced, TraceConfig(facts=len(traced))))
    return {
        "precision": "float32",
        "facts": len(patch.edited),
        "layers": list(config.layers),
        "covariance_tokens": blocks.numel(),
        "covariance_seconds": covariance_seconds,
        "values_seconds": values_seconds,
        "solve_seconds": solve_seconds,
        "whole_seconds": whole_seconds,  # covariances too
        "traced_facts": len(traced),
        "trace_seconds": trace_seconds,
        "values_probability": sum(values.probabilities) / len(values.probabilities),
        **device_memory(),
    }


def second_time(work: Callable[[], Result]) -> tuple[Result, float]:
    """Its result, and the seconds it takes once everything that it needs is loaded."""
    work()
    return timed(work)


def solve(
    model: GPT, facts: Sequence[LocatedFact], values: Tensor, config: EditConfig, covariances: Mapping[int, Covariance]
) -> None:
    """Factorise the covariances and solve for all layers; the weights are left as they were."""
    layers = {layer: EditedLayer(model, layer) for layer in config.layers}
    try:
        solvers = {layer: solver_of(covariances[layer], config, model.device) for layer in layers}
        write_values(model, facts, values, layers, solvers)
    finally:
        for layer in layers.values():
            layer.restore()
