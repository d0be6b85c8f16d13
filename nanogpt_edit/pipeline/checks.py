"""What can be known to fail is found before anything long begins: what a late stage reads, what a model cannot do.

`check_data` needs the recipe alone, `check_model` the model that the run starts from, trained or not.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

from nanogpt_edit.common.device import check_threads
from nanogpt_edit.common.errors import about
from nanogpt_edit.common.sizes import check_fits
from nanogpt_edit.data.samples import with_room
from nanogpt_edit.editing.editor import check_edit
from nanogpt_edit.editing.records import OF_PART, EditScores
from nanogpt_edit.engine.completion import COMPLETION_BYTES
from nanogpt_edit.evaluation.facts import FACT_GROUPS
from nanogpt_edit.evaluation.suite import problem_metric_names
from nanogpt_edit.model.frozen import weights_under
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lora import check_rank
from nanogpt_edit.model.size import parameter_count
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline.inputs import Part, RunInputs
from nanogpt_edit.pipeline.new_model import new_config
from nanogpt_edit.pipeline.recipe import ModelConfig, Recipe
from nanogpt_edit.pipeline.records import timed
from nanogpt_edit.report.expect import check_expectations
from nanogpt_edit.training.config import TuningConfig
from nanogpt_edit.training.pretrain import check_window
from nanogpt_edit.training.rewards import find_reward
from nanogpt_edit.training.sft import problems_per_step

PROBLEM_BYTES = 560  # of the embedded world, as Python keeps it
SENTENCE_BYTES = 50_000  # all its facts once
TOKEN_BYTES, ROW_BYTES = 8, 64  # in a tensor; the least that Python keeps of a row


def check_sizes(recipe: Recipe) -> None:
    """Raise UserError for numbers that ask for more than the machine can hold, before anything is allocated.

    The estimates are low: what fits may still be too much, what does not fit certainly is.
    """
    if recipe.threads is not None:
        check_threads(recipe.threads)
    world, text, sft, grpo, evaluate = recipe.world, recipe.pretrain, recipe.sft, recipe.grpo, recipe.evaluate
    room = grpo.max_new_tokens or 1
    for what, needed, numbers in (
        ("the new model with its optimizer", new_model_bytes(recipe.model), "the numbers under model"),
        ("the world's problems", PROBLEM_BYTES * (world.problems + world.validation + world.test), "world.problems"),
        ("the text of the facts", SENTENCE_BYTES * text.fact_repeats, "pretrain.fact_repeats"),
        (
            "a step of pretraining",
            TOKEN_BYTES * text.batch_size * text.context_tokens,
            "pretrain.batch_size or pretrain.context_tokens",
        ),
        ("a step of SFT", ROW_BYTES * sft.batch_size, "sft.batch_size"),
        ("a step's text", TOKEN_BYTES * sft.replay_rows * sft.replay_tokens, "sft.replay_tokens or sft.batch_size"),
        (
            "a step's completions",
            TOKEN_BYTES * grpo.problems_per_step * grpo.group_size * room,
            "grpo.group_size, grpo.problems_per_step or grpo.max_new_tokens",
        ),
        ("the validation", COMPLETION_BYTES * grpo.evaluate_samples, "grpo.evaluate_samples"),
        ("the evaluation", COMPLETION_BYTES * max(evaluate.samples, evaluate.edited_samples), "evaluate.samples"),
        ("the arithmetic", COMPLETION_BYTES * evaluate.arithmetic_samples, "evaluate.arithmetic_samples"),
        ("the prefixes", TOKEN_BYTES * recipe.edit.n_prefixes * recipe.edit.prefix_tokens, "edit.n_prefixes"),
    ):
        check_fits(what, needed, remedy=f"lower {numbers}")


def new_model_bytes(sizes: ModelConfig) -> int:
    """Weights, gradients and two moments of a new model, in float32; 0 where an existing one is taken."""
    if sizes.source is not None:
        return 0
    return 4 * 4 * parameter_count(new_config(sizes, vocab_size=sizes.vocab_size or 1))


def check_data(inputs: RunInputs, *parts: Part) -> None:
    """Read these parts of the data; look for the rewards and at what is expected."""
    if "grpo" in inputs.recipe.stages:
        check_rewards(inputs.recipe)
    inputs.prepare(*parts)
    check_expectations(inputs.recipe.expect, summary_paths(inputs.recipe))


def check_rewards(recipe: Recipe) -> None:
    """Raise UserError for a reward that is not to be found."""
    for reward in recipe.grpo.rewards:
        find_reward(reward)


def check_model(inputs: RunInputs, model: GPT) -> None:
    """Raise UserError where the recipe asks of `model` what one of its size or with its tokenizer cannot do."""
    recipe = inputs.recipe
    tokenizer, room = tokenizer_of(model), recipe.grpo.max_new_tokens
    if "sft" in recipe.stages:
        if inputs.replays_text(model):
            check_window("sft.replay_tokens", recipe.sft.replay_tokens, model)
        if recipe.sft.chats is None:
            problems_per_step(inputs.solved(model)[0], recipe.sft)
    if "grpo" in recipe.stages and room is not None:
        with about("grpo.max_new_tokens"):
            with_room(inputs.problems.train, tokenizer, room=room, block_size=model.config.block_size)
    for name, stage in (("sft", recipe.sft), ("grpo", recipe.grpo)):
        if name in recipe.stages:
            check_trained(model, name, stage)
    if "edited" in recipe.stages:
        with about("edit"):
            check_edit(model, inputs.facts, recipe.edit)


def check_trained(model: GPT, stage: str, config: TuningConfig) -> None:
    """Raise UserError for parts that are to stay as they are, or a rank of LoRA, that the model does not have."""
    with about(stage):
        weights_under(model, config.frozen)
        check_rank(model, config.lora)


def summary_paths(recipe: Recipe) -> set[str]:
    """Every number that summary.json of a whole run of this recipe may hold."""
    evaluate, stages = recipe.evaluate, recipe.stages
    numbers = {
        "problems": set(problem_metric_names(evaluate.samples)) if evaluate.problems else set(),
        "arithmetic": set(problem_metric_names(evaluate.arithmetic_samples)),
        "facts": set(FACT_GROUPS),
        "probes": {"non_arithmetic"},
        "perplexity": {"perplexity", "nats_per_token"},
    }
    measured = {f"{skill}.{name}" for skill, names in numbers.items() for name in names}
    compared = numbers["problems"] | {f"facts_{group}" for group in FACT_GROUPS}
    compared |= {
        "arithmetic_pass_at_1",
        "arithmetic_flexible_pass_at_1",
        "probes_non_arithmetic",
        "perplexity_nats_per_token",
    }
    paths = {f"stages.{stage}.{name}" for stage in stages for name in measured}
    paths |= {f"comparisons.{after}-{before}.{name}" for before, after in pairwise(stages) for name in compared}
    if "edited" in stages:
        paths |= {f"edit.{field.name}" for field in fields(EditScores) if field.name != "records"}
        paths |= {"edit.n", "edit.seconds", "edit.neighbourhood_drop"}
        paths |= {f"edit.{part}.{name}" for part in ("known", "unknown") for name in OF_PART}
    return paths | {f"seconds.{what}" for what in (*timed(stages), "total")}
