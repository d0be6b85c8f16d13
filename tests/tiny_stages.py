"""The three training stages on a two-layer model, each over in about a second, and the process that kills them.

`python tiny_stages.py FOLDER` runs every stage in child processes that are killed again and again (see `main`).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from conftest import TEXTS

from nanogpt_edit.data.problems import Problem, to_sample
from nanogpt_edit.data.text import token_blocks
from nanogpt_edit.files import read_jsonl, write_json
from nanogpt_edit.model.checkpoint import fingerprint
from nanogpt_edit.model.gpt import GPT, GPTConfig
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.train.grpo import GRPOConfig, grpo
from nanogpt_edit.train.loop import make_optimizers
from nanogpt_edit.train.pretrain import PretrainConfig, pretrain, token_stream
from nanogpt_edit.train.sft import SFTConfig, sft

PROBLEMS = tuple(
    Problem(question=f"{a} + {b}?", rationale=f"{a} + {b} = {a + b}", answer=str(a + b), id=f"{a}+{b}")
    for a in range(1, 8)
    for b in range(1, 4)
)
STAGES = ("pretrain", "sft", "grpo")

PRETRAIN = PretrainConfig(steps=20, save_every=3, evaluate_every=6, batch_size=3, context_tokens=12, optimizer="muon")
SFT = SFTConfig(
    steps=20, learning_rate=5e-3, save_every=3, evaluate_every=4, batch_size=4, replay=0.5, replay_tokens=12
)
GRPO = GRPOConfig(
    steps=10,
    save_every=3,
    evaluate_every=4,
    problems_per_step=3,
    group_size=4,
    max_new_tokens=6,
    rewards={"tiny_stages:letters": 1.0},
    kl_coef=0.1,
    evaluate_problems=2,
    evaluate_samples=1,
    keep="last",
    learning_rate=3e-3,
)


def letters(problem: Problem, completion_text: str) -> float:
    """A reward that a random model earns now and then: the share of letters."""
    return sum(character.isalpha() for character in completion_text) / max(1, len(completion_text))


@cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=300)


def tiny_model(*, seed: int = 0, vocab_size: int | None = None) -> GPT:
    tokenizer = tiny_tokenizer()
    size = vocab_size or tokenizer.vocab_size
    model = GPT(GPTConfig(vocab_size=size, block_size=48, n_layer=2, n_head=2, n_embd=16), seed=seed)
    model.tokenizer = tokenizer
    return model


def run_stage(stage: str, folder: Path) -> GPT:
    """Train a new model (or go on from the state in `folder`) -> the trained model."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    state, log = folder / "state", folder / "log.jsonl"
    if stage == "pretrain":
        stream = token_stream(TEXTS, tokenizer, context_tokens=PRETRAIN.context_tokens)
        held_out = token_blocks(TEXTS[:1], tokenizer, block_size=12)
        pretrain(model, stream, held_out, PRETRAIN, seed=1, state=state, log=log)
    elif stage == "sft":
        samples = [to_sample(problem, tokenizer) for problem in PROBLEMS]
        stream = token_stream(TEXTS, tokenizer, context_tokens=SFT.replay_tokens)
        sft(model, samples[5:], samples[:5], SFT, replay=stream, seed=1, pad_id=0, state=state, log=log)
    else:
        grpo(model, PROBLEMS[5:], PROBLEMS[:5], GRPO, seed=1, state=state, log=log)
    return model


def steps_of(stage: str) -> int:
    return {"pretrain": PRETRAIN, "sft": SFT, "grpo": GRPO}[stage].steps


def main(folder: Path, kills: int = 7) -> None:
    """Kill each stage `kills` times at random instants (once politely), then let it finish.

    Writes `<stage>/done.json` with the fingerprint and the signals that ended the processes.
    """
    chance = random.Random(0)
    make_optimizers(tiny_model(), SFT)  # imports a good second's worth of torch, which each child would import again
    for stage in STAGES:
        own = folder / stage
        ended: list[int] = []
        for number in range(kills):
            child = fork(lambda stage=stage, own=own: run_stage(stage, own))  # type: ignore[misc]
            # In the first half of the run, so that it cannot be over before the signal comes.
            wait_for_step(own / "log.jsonl", number * steps_of(stage) // (2 * kills), child)
            time.sleep(chance.uniform(0, 0.02))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM if number == kills // 2 else signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            ended.append(os.waitstatus_to_exitcode(status))
        child = fork(lambda stage=stage, own=own: finish_stage(stage, own))  # type: ignore[misc]
        _, status = os.waitpid(child, 0)
        ended.append(os.waitstatus_to_exitcode(status))
        write_json(own / "ended.json", {"exit_codes": ended})


def finish_stage(stage: str, folder: Path) -> None:
    write_json(folder / "done.json", {"fingerprint": fingerprint(run_stage(stage, folder))})


def fork(work: Callable[[], object]) -> int:
    """Start `work` in a child process -> its pid. It exits with 0, or 130 when interrupted."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def wait_for_step(log: Path, step: int, child: int) -> None:
    """Until the log shows that `step` is done, or the child has ended."""
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if log.exists():
            with contextlib.suppress(Exception):  # it is being written
                if read_jsonl(log)[-1]["step"] >= step:  # type: ignore[operator]
                    return
        time.sleep(0.002)


if __name__ == "__main__":
    sys.modules["tiny_stages"] = sys.modules["__main__"]  # where the reward is looked for
    main(Path(sys.argv[1]))
