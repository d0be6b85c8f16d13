"""How fast facts are edited and traced: this package against a plain loop that does what published code does.

A GPT-2 of 124 M parameters with random weights, so nothing is downloaded; MEMIT's settings for GPT-2 (layers 3 to 8, 20
steps, the prompt and five generated prefixes of ten tokens). The plain loops (`plain/`) and ours take turns
in one process on the same facts, text and prompt; results are compared before times are. Per part the ratio is the
median over pairs. The last line is one JSON object; `--out` keeps it.

    python benchmarks/edit_speed.py --out benchmarks/results/edit_speed.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from machine import finish, matrix_peak, timed
from plain import plain_editing, plain_tracing
from torch import Tensor

from nanogpt_edit.data.fact_files import read_facts
from nanogpt_edit.data.facts import Fact, locate_subject
from nanogpt_edit.data.text import token_blocks
from nanogpt_edit.data.world.world import WorldConfig, make_world
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, generate_prefixes, locate_facts
from nanogpt_edit.editing.covariance import collect
from nanogpt_edit.editing.covariance_cache import covariances
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.values import optimise_values
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer, tokenizer_of
from nanogpt_edit.tracing.config import TraceConfig
from nanogpt_edit.tracing.tracing import Tracer, trace_facts

GOALS = {"values": 12.0, "covariance": 4.0, "tracing": 5.0}
CONFIG = EditConfig(
    layers=(3, 4, 5, 6, 7, 8),
    covariance_weight=20_000.0,
    learning_rate=0.5,
    steps=20,
    stop_probability=2.0,  # nothing stops early, on either side
    clamp=0.75,
    weight_decay=0.5,
    n_prefixes=5,
    prefix_tokens=10,
    context_weight=0.0,
    refine_steps=0,
)
BLOCK_TOKENS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="times that both sides run")
    parser.add_argument("--plain-facts", type=int, default=2, help="facts per plain run (ours takes all 50)")
    parser.add_argument("--covariance-tokens", type=int, default=8192)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    model, text = gpt2(device)
    facts = fifty_facts()
    located = locate_facts(model, facts, generate_prefixes(model, CONFIG))
    blocks = token_blocks(text, tokenizer_of(model), block_size=BLOCK_TOKENS)[:, 1:]

    peak = matrix_peak(device)
    print(f"fp32 matrix products: {peak / 1e9:.0f} GFLOP/s", flush=True)
    parts = {
        "values": values_part(model, located, chosen.pairs, chosen.plain_facts, peak),
        "covariance": covariance_part(model, blocks[: chosen.covariance_tokens // BLOCK_TOKENS], chosen.pairs, peak),
        "tracing": tracing_part(model, chosen.pairs),
    }
    whole = end_to_end(model, blocks, chosen.pairs)
    record = {
        "name": "edit_speed",
        "model": "GPT-2 124M, random weights, float32",
        "unit": "seconds (values: per fact; covariance: six layers; tracing: one prompt)",
        "ours": {name: part["ours"] for name, part in parts.items()},
        "peer": {name: part["plain"] for name, part in parts.items()},
        "ratio": {name: part["ratio"] for name, part in parts.items()},
        "goal": GOALS,
        "parts": parts,
        "fifty_facts_seconds": whole,
        "matrix_peak_gflops": peak / 1e9,
    }
    finish(record, chosen.out, device=device)


def gpt2(device: torch.device) -> tuple[GPT, list[str]]:
    """The model, with a tokenizer whose words are about as long as GPT-2's on this text, and the text."""
    world = make_world(WorldConfig(problems=2000))
    text = [*world.sentences, *(f"{p.question} {p.rationale}" for p in world.problems.train)]
    config = GPTConfig(vocab_size=50304, block_size=1024, n_layer=12, n_head=12, n_embd=768)
    model = GPT(config, seed=0).to(device).eval().requires_grad_(False)
    model.tokenizer = Tokenizer.train(text, vocab_size=3000)
    return model, text


def fifty_facts() -> list[Fact]:
    """Without rewordings, which the published methods do not have."""
    return [replace(fact, rewordings=()) for fact in read_facts("facts50")]


def values_part(
    model: GPT, located: Sequence[LocatedFact], pairs: int, plain_facts: int, peak: float
) -> dict[str, object]:
    slow, fast = [], []
    for pair in range(pairs):
        some = located[pair * plain_facts : (pair + 1) * plain_facts]
        expected, seconds = timed(lambda some=some: plain_editing.values(model, some, CONFIG))
        slow.append(seconds / plain_facts)
        found, seconds = timed(lambda: optimise_values(model, located, CONFIG))
        fast.append(seconds / len(located))
        # the plain loop keeps the last δ, ours the best; without a stop they differ by a step at most
        check("values", found.values[pair * plain_facts : (pair + 1) * plain_facts], expected.cpu(), tolerance=0.05)
    return compared("values", slow, fast)


def covariance_part(model: GPT, blocks: Tensor, pairs: int, peak: float) -> dict[str, object]:
    slow, fast = [], []
    for _ in range(pairs):
        expected, seconds = timed(lambda: [plain_editing.covariance(model, blocks, layer) for layer in CONFIG.layers])
        slow.append(seconds)
        found, seconds = timed(lambda: collect(model, blocks, layers=CONFIG.layers, max_tokens=10**9, tolerance=0.0))
        fast.append(seconds)
        check("covariance", found[CONFIG.layers[-1]].matrix, expected[-1].double().cpu(), tolerance=1e-4)
    return compared("covariance", slow, fast, tokens=blocks.numel())


def tracing_part(model: GPT, pairs: int) -> dict[str, object]:
    """One prompt of ten tokens, ten draws, restored at every token and layer: `resid_post` on both sides."""
    fact, config = ten_token_fact(model), TraceConfig(draws=10, sites=("resid_post",))
    tracer = Tracer(model, [fact], config)
    place = locate_subject(fact.prompt, fact.subject, tokenizer_of(model))
    subject = slice(place.first, place.last + 1)
    noise = tracer.noise[0, :, subject]
    windows = [range(layer, layer + 1) for layer in range(model.config.n_layer)]
    slow, fast = [], []
    for _ in range(pairs):
        expected, seconds = timed(
            lambda: plain_tracing.trace(
                model, place.token_ids, subject, tracer.targets[0], noise, "resid_post", windows
            )
        )
        slow.append(seconds)
        found, seconds = timed(lambda: trace_facts(model, [fact], config)[0])
        fast.append(seconds)
        restored = found.effect["resid_post"][subject.start :] + found.corrupted_p
        check("tracing", restored, expected[subject.start :].cpu(), tolerance=1e-3)
    _, all_sites = timed(lambda: trace_facts(model, [fact], TraceConfig(draws=10)))
    return compared("tracing", slow, fast, tokens=len(place.token_ids)) | {"ours_three_sites": all_sites}


def ten_token_fact(model: GPT) -> Fact:
    """The fact whose prompt is nearest to ten tokens."""
    encode = tokenizer_of(model).encode
    return min(fifty_facts(), key=lambda fact: abs(len(encode(fact.prompt)) - 10))


def end_to_end(model: GPT, blocks: Tensor, runs: int) -> dict[str, object]:
    """Fifty facts, covariances in the cache: prefixes, values, keys, solution, patch; the median of some runs."""
    tokens, seconds = 8192, []
    config = replace(CONFIG, covariance_tokens=tokens, covariance_tolerance=0.0)
    with tempfile.TemporaryDirectory() as folder:
        covariances(model, blocks, layers=CONFIG.layers, max_tokens=tokens, tolerance=0.0, cache_dir=Path(folder))
        for _ in range(runs):
            patch, taken = timed(
                lambda: edit_model(model, fifty_facts(), config, covariance_blocks=blocks, cache_dir=Path(folder))
            )
            seconds.append(taken)
    return {"total": statistics.median(seconds), "totals": seconds, "facts": len(patch.edited)}


def check(name: str, found: Tensor, expected: Tensor, *, tolerance: float) -> None:
    apart = float((found.double().cpu() - expected.double().cpu()).norm() / expected.double().norm())
    if not apart <= tolerance:
        raise SystemExit(f"{name}: the two sides differ by {apart:.2%}")


def compared(name: str, slow: Sequence[float], fast: Sequence[float], **more: float) -> dict[str, object]:
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    part = {
        "plain": statistics.median(slow),
        "ours": statistics.median(fast),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        **more,
    }
    print(f"{name}: plain {part['plain']:.2f} s, ours {part['ours']:.2f} s, ratio {part['ratio']:.1f}", flush=True)
    return part


if __name__ == "__main__":
    main()
