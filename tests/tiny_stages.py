"""The three training stages on a two-layer model, each over in about a second, and the process that kills them.

`python tiny_stages.py FOLDER KILLS` runs every stage in child processes that are killed so often (see `main`).
"""

from __future__ import annotations

import copy
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from conftest import TEXTS

from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.common.files import write_json
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.samples import to_sample
from nanogpt_edit.data.text import token_blocks, token_stream
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lora_config import LoraConfig
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.training.grpo import grpo
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.optimizers import make_optimizers
from nanogpt_edit.training.pretrain import pretrain
from nanogpt_edit.training.pretrain_config import PretrainConfig
from nanogpt_edit.training.sft import sft
from nanogpt_edit.training.sft_config import SFTConfig

PROBLEMS = tuple(
    Problem(question=f"{a} + {b}?", rationale=f"{a} + {b} = {a + b}", answer=str(a + b), id=f"{a}+{b}")
    for a in range(1, 8)
    for b in range(1, 4)
)
STAGES = ("pretrain", "sft", "grpo")
WITH_LORA = ("sft+lora", "grpo+lora")
LORA = LoraConfig(rank=3, alpha=12)
DEVICE = "cpu"  # tests and jobs set it

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


def half(problem: Problem, completion_text: str) -> float:
    """A reward that teaches nothing."""
    return 0.5


def first_letter(problem: Problem, completion_text: str) -> float:
    """A reward that an empty text breaks."""
    return float(completion_text[0].isalpha())


@cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=300)


def tiny_model(*, seed: int = 0, vocab_size: int | None = None) -> GPT:
    tokenizer = tiny_tokenizer()
    size = vocab_size or tokenizer.vocab_size
    model = GPT(GPTConfig(vocab_size=size, block_size=48, n_layer=2, n_head=2, n_embd=16), seed=seed)
    model.tokenizer = tokenizer
    return model


def run_stage(stage: str, folder: Path, *, shard: bool = False) -> GPT:
    """Train a new model (or go on from the state in `folder`) -> the trained model; "sft+lora" with adapters."""
    model, tokenizer = tiny_model().to(DEVICE), tiny_tokenizer()
    stage, _, adapted = stage.partition("+")
    lora = LORA if adapted else LoraConfig()
    state, log = folder / "state", folder / "log.jsonl"
    if stage == "pretrain":
        stream = token_stream(TEXTS, tokenizer, context_tokens=PRETRAIN.context_tokens)
        held_out = token_blocks(TEXTS[:1], tokenizer, block_size=12)
        trainer = pretrain(model, stream, held_out, PRETRAIN, seed=1, state=state, log=log, shard=shard)
    elif stage == "sft":
        samples = [to_sample(problem, tokenizer) for problem in PROBLEMS]
        stream = token_stream(TEXTS, tokenizer, context_tokens=SFT.replay_tokens)
        own, held = samples[5:], samples[:5]
        config = replace(SFT, lora=lora)
        trainer = sft(model, own, held, config, replay=stream, seed=1, state=state, log=log, shard=shard)
    else:
        rl = replace(GRPO, lora=lora)
        trainer = grpo(model, PROBLEMS[5:], PROBLEMS[:5], rl, seed=1, state=state, log=log, shard=shard)
    with trainer.parallel.gathered() as whole:
        return copy.deepcopy(whole) if shard else whole


def steps_of(stage: str) -> int:
    return {"pretrain": PRETRAIN, "sft": SFT, "grpo": GRPO}[stage].steps


def main(folder: Path, kills: int) -> None:
    """Kill each stage `kills` times with SIGKILL, at instants drawn from the time that it takes, the first included.

    A run that is done before its turn is left as it is, and another one begun, so that every kill hits a living
    process. Each run leaves its folder `<stage>/<number>`; `<stage>/killed.json` says how often each was hit.
    """
    chance = random.Random(0)
    make_optimizers(tiny_model(), SFT)  # imports a good second's worth of torch, which each child would import again
    for stage in STAGES:
        started = time.monotonic()
        assert wait_for(fork(finish_stage, stage, folder / stage / "0")) == 0
        span = time.monotonic() - started
        hits = [0, 0]
        while True:
            child = fork(finish_stage, stage, folder / stage / str(len(hits) - 1))
            if sum(hits) < kills:
                time.sleep(chance.uniform(0, span))
                os.kill(child, signal.SIGKILL)  # a child that has ended is there until it is waited for
            code = wait_for(child)
            assert code in (0, -signal.SIGKILL), code
            if code:
                hits[-1] += 1
            elif sum(hits) < kills:
                hits.append(0)
            else:
                break
        write_json(folder / stage / "killed.json", {"hits": hits})


def finish_stage(stage: str, folder: Path) -> None:
    write_json(folder / "done.json", {"fingerprint": fingerprint(run_stage(stage, folder))})


def fork(work: Callable[[str, Path], None], stage: str, folder: Path) -> int:
    """Start `work` in a child process -> its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        work(stage, folder)
        code = 0
    finally:
        os._exit(code)


def wait_for(child: int) -> int:
    """Until the child has ended -> its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.modules["tiny_stages"] = sys.modules["__main__"]  # where the reward is looked for
    main(Path(sys.argv[1]), int(sys.argv[2]))
