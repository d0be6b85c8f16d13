"""The memory a training step needs, estimated, beside what the machine has free."""

from __future__ import annotations

from pathlib import Path

import torch

from nanogpt_edit.doctor.findings import Finding
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.head import CHUNK_NUMBERS, KEPT_NUMBERS
from nanogpt_edit.model.kv_cache import KVCache
from nanogpt_edit.model.linear import Linear
from nanogpt_edit.model.lora_config import LoraConfig
from nanogpt_edit.model.size import activation_bytes
from nanogpt_edit.training.config import LoopConfig, TuningConfig
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.parallel import tokens_at_once

GIBIBYTE = 2**30


def check_memory(needed: int, available: int | None) -> Finding:
    """Does the estimate fit in what the machine has free?"""
    found = f"about {needed / GIBIBYTE:.2g} GiB needed"
    if available is None:
        return Finding("memory", "ok", f"{found}; how much is free is not known here")
    found += f", {available / GIBIBYTE:.2g} GiB free"
    if needed <= available:
        return Finding("memory", "ok", found)
    return Finding("memory", "warn", found, "lower micro_batch_tokens, or the rows of a step")


def training_bytes(model: GPT, config: LoopConfig) -> int:
    """Roughly what one step holds at its peak: weights, gradients, moments, activations, logits; GRPO's cache.

    Of the logits a chunk is held three times: as log-probabilities, as probabilities, and as their gradient; GRPO keeps
    those of a micro-batch, up to KEPT_NUMBERS. The weights' packed copies live while rollouts are sampled, when there
    are neither gradients nor activations.
    """
    shape, size = model.config, next(model.parameters()).element_size()
    tokens = tokens_at_once(model, config)
    per_token = activation_bytes(shape, checkpointing=config.activation_checkpointing, itemsize=size)
    logits = tokens * shape.vocab_size
    total = weight_bytes(model, config) + tokens * per_token + 3 * 4 * min(logits, CHUNK_NUMBERS)
    if isinstance(config, GRPOConfig):
        total += 4 * min(logits, KEPT_NUMBERS)
        rows = config.problems_per_step * config.group_size
        total += rows * KVCache.row_bytes(shape, capacity=config.max_new_tokens or shape.block_size, dtype=model.dtype)
    return total


def weight_bytes(model: GPT, config: LoopConfig) -> int:
    """Weights, gradients, two moments, and GRPO's reference; with LoRA gradients and moments are the adapters' alone,
    and the reference is the model itself."""
    size = next(model.parameters()).element_size()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    lora = config.lora if isinstance(config, TuningConfig) else LoraConfig()
    if lora.rank:
        return size * parameters + 4 * 4 * adapter_size(model, lora)  # in float32: itself, gradient, moments
    return size * parameters * (4 + (isinstance(config, GRPOConfig) and config.kl_coef > 0))


def adapter_size(model: GPT, lora: LoraConfig) -> int:
    """How many numbers LoRA's matrices have."""
    layers = [each for name, each in model.blocks.named_modules() if name.partition(".")[2] in lora.layers]
    return sum(lora.rank * sum(layer.weight.shape) for layer in layers if isinstance(layer, Linear))


def available_bytes(device: torch.device) -> int | None:
    """Memory that is free on the device; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
