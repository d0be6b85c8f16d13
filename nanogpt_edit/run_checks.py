"""What can be known to fail is found before anything long begins: what a late stage reads, what a model cannot do.

`check_data` needs the recipe alone, `check_model` the model that the run starts from, trained or not.
"""

from __future__ import annotations

from nanogpt_edit.data.problems import with_room
from nanogpt_edit.edit.editor import check_edit
from nanogpt_edit.errors import about
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.progress import say
from nanogpt_edit.report.expect import parse_bound
from nanogpt_edit.run_data import RunData
from nanogpt_edit.train.pretrain import check_window
from nanogpt_edit.train.rewards import find_reward


def check_data(run: RunData) -> None:
    """Read the data of every stage; look for the rewards and at the bounds of what is expected."""
    check_problems(run)
    for metric, bound in run.recipe.expect.items():
        parse_bound(bound, key=metric)
    _ = run.extra_text, run.replay_source, run.facts


def check_problems(run: RunData) -> None:
    """Read the problems, say what was cut or left out, and look for the rewards."""
    for note in run.problems.notes:
        say(note)
    for reward in run.recipe.grpo.rewards:
        find_reward(reward)


def check_model(run: RunData, model: GPT) -> None:
    """Raise UserError where the recipe asks of `model` what one of its size or with its tokenizer cannot do."""
    tokenizer, room = tokenizer_of(model), run.recipe.grpo.max_new_tokens
    if run.replays_text:
        check_window("sft.replay_tokens", run.recipe.sft.replay_tokens, model)
    run.solved(model)
    if room is not None:
        with about("grpo.max_new_tokens"):
            with_room(run.problems.train, tokenizer, room=room, block_size=model.config.block_size)
    with about("edit"):
        check_edit(model, run.facts, run.recipe.edit)
