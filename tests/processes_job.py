"""What several processes do together, written to a folder for a test to compare with what one process does.

`torchrun --nproc_per_node=2 processes_job.py FOLDER DEVICE` runs every part; `work(folder)` is the same in the test's
process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_stages
import torch
from micro import MICRO
from safetensors.torch import save_file
from tiny_stages import PROBLEMS, run_stage, tiny_model

from nanogpt_edit.common import distributed, stopping
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import write_json, write_jsonl
from nanogpt_edit.data.batch import rows_of_step
from nanogpt_edit.data.fact_files import fact_to_record, read_facts
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.evaluation.facts import Question
from nanogpt_edit.evaluation.probes import PROBES
from nanogpt_edit.evaluation.suite import Skills, evaluate
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline import pipeline
from nanogpt_edit.pipeline.recipe import Recipe
from nanogpt_edit.training.trainer import Trainer

SKILLS = Skills(
    problems=PROBLEMS[:7],
    arithmetic=PROBLEMS[7:10],
    questions=[Question("recall", "France", "The capital of France is", "Paris")],
    probes=PROBES[2:3],
)


class Stopped(Exception):
    pass


def work(folder: Path) -> None:
    """Everything that must not depend on the number of processes."""
    with shorter_stages() as patch:
        for stage in (*tiny_stages.STAGES, "grpo+lora"):
            keep(folder / stage, stage)
        # A batch of one row leaves a process without any.
        patch.setattr(tiny_stages, "PRETRAIN", replace(tiny_stages.PRETRAIN, steps=3, batch_size=1))
        keep(folder / "one_row", "pretrain")
        patch.setattr(tiny_stages, "GRPO", replace(tiny_stages.GRPO, rewards={"processes_job:fails": 1.0}))
        try:
            run_stage("grpo", folder / "fails")
        except UserError as error:
            if distributed.is_first():
                write_json(folder / "fails.json", {"sentence": str(error)})
    model = tiny_model().to(tiny_stages.DEVICE)
    config = EvaluateConfig(samples=3, arithmetic_samples=2, max_new_tokens=8, perplexity_tokens=64)
    found = evaluate(model, SKILLS, config, stage="model")
    if distributed.is_first():
        found.save(folder / "eval")


def work_in_shards(folder: Path) -> None:
    """The stages again with shards; SFT is stopped, its newest state damaged; it goes on from the one before."""
    with shorter_stages():
        with pytest.MonkeyPatch.context() as accident:
            accident.setattr(Trainer, "log", stop_at_8(Trainer.log))
            with pytest.raises(Stopped):
                run_stage("sft", folder / "sft", shard=True)
        if distributed.is_first():
            damage(next((folder / "sft" / "state" / "step_00000006").glob("*.safetensors")))
        distributed.barrier()
        for stage in (*tiny_stages.STAGES, "grpo+lora"):
            keep(folder / stage, stage, shard=True)


@contextmanager
def shorter_stages() -> Iterator[pytest.MonkeyPatch]:
    """In small micro-batches: several passes per process, not always as many in one as in the other; several processes
    compute GRPO's activations again in the backward pass, one keeps them."""
    again = distributed.world_size() > 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_stages, "PRETRAIN", replace(tiny_stages.PRETRAIN, steps=6))
        patch.setattr(tiny_stages, "SFT", replace(tiny_stages.SFT, steps=12, micro_batch_tokens=60))
        patch.setattr(
            tiny_stages,
            "GRPO",
            replace(tiny_stages.GRPO, steps=3, micro_batch_tokens=30, activation_checkpointing=again),
        )
        yield patch


def damage(file: Path) -> None:
    """Flip one bit."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def stop_at_8(original: Callable[..., None]) -> Callable[..., None]:
    def log(self: Trainer, *arguments: object, **named: object) -> None:
        if self.step == 8:
            raise Stopped
        original(self, *arguments, **named)

    return log


def fails(problem: object, completion_text: str) -> float:
    """A reward that does not work for one of the problems: of the first step's, the one that falls to process 1."""
    _, place, _ = rows_of_step(len(PROBLEMS) - 5, rows=3, seed=1, step=0)
    if problem == PROBLEMS[5 + place]:
        raise ValueError("no such thing")
    return float(len(completion_text))


def keep(folder: Path, stage: str, *, shard: bool = False) -> None:
    """Run a stage; beside its log and states, write its weights, and the gradients of its first update."""
    gradients: dict[str, torch.Tensor] = {}
    original = Trainer.apply_gradients

    def look(self: Trainer) -> float:
        if not gradients:
            for name, weight in self.trained.named_parameters():
                assert weight.grad is not None
                whole = weight.grad.full_tensor() if shard else weight.grad
                gradients[name] = whole.detach().cpu().clone()
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "apply_gradients", look)
        model: GPT = run_stage(stage, folder, shard=shard)
    if distributed.is_first():
        save_file({name: weight.detach().cpu() for name, weight in model.named_parameters()}, folder / "weights")
        save_file(gradients, folder / "gradients")


def dealing() -> dict[str, object]:
    """How things are dealt out and collected, for a look at each of the processes."""
    items = list(range(5))
    return {
        "rank": distributed.rank(),
        "share": list(distributed.shard(items)),
        "squares": distributed.map_over_ranks(items, lambda own: [(distributed.rank(), item**2) for item in own]),
        "total": distributed.all_reduce_sum([1.0, 10.0 * distributed.rank()]),
        "largest": distributed.all_reduce_max([float(distributed.rank()), -float(distributed.rank())]),
    }


def whole_recipe(folder: Path) -> Recipe:
    """Every stage, of a few steps, and two edits: what they come to is measured above."""
    facts = folder / f"facts{distributed.rank()}.jsonl"
    write_jsonl(facts, [fact_to_record(fact) for fact in read_facts("facts50")[:2]])
    return replace(
        MICRO,
        facts=str(facts),
        pretrain=replace(MICRO.pretrain, steps=2),
        sft=replace(MICRO.sft, steps=2),
        grpo=replace(MICRO.grpo, steps=1),
        edit=replace(MICRO.edit, steps=1, n_prefixes=0, covariance_tokens=500, refine_steps=0),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.modules["processes_job"] = sys.modules["__main__"]  # where the reward is looked for
    folder, tiny_stages.DEVICE = Path(sys.argv[1]), sys.argv[2]
    with distributed.joined():
        write_json(folder / f"dealing{distributed.rank()}.json", dealing())
        work(folder / "replicas")
        work_in_shards(folder / "shards")
        assert pipeline.run(whole_recipe(folder), folder / "run") == 0
    stopping.leave(0)
