"""How fast a model is fine-tuned: one optimizer step on the same GSM8K problems by four trainers, in turns.

- ours: the stage's own step (`sft.py`): no padding, logits at target positions only;
- trl: TRL's SFTTrainer as it comes (it recomputes activations in the backward pass, to save memory);
- trl-keep: the same with gradient_checkpointing off;
- trainer: transformers' Trainer, rows padded to the longest of the batch, labels on the completions;
- stream: what nanoGPT does (it is not on PyPI): all tokens one after the other in full blocks, each a target, through
  our model in a plain loop. It has no padding to lose, and no masked prompts to save.

Every side has the same weights, AdamW in float32 with the same settings, no dropout, one batch per step. Work is
proven by counts and, on the first step, by the loss, which must be equal (not the stream's: its targets are others).
Speed is counted in tokens of the problems, without padding. The last line is one JSON object.

    python benchmarks/sft_step.py --data DIR --out benchmarks/results/sft_step.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from gpt2 import forward_flops, loaded, material, parser_of
from machine import finish, matrix_peak
from peers import BETA2, CLIP, LEARNING_RATE, common, peer_model, run
from turns import Job, Options, Turn, summary, take_turns

from nanogpt_edit.checkpoint.checkpoint import load
from nanogpt_edit.data.samples import Sample, to_samples
from nanogpt_edit.pipeline.environment import version
from nanogpt_edit.training.sft import target_tokens, train_on
from nanogpt_edit.training.sft_config import SFTConfig
from nanogpt_edit.training.trainer import Trainer

GOALS = {"trl": 3.0, "trainer": 1.9, "stream": 1.0}


def ours(turn: Turn, options: Options) -> None:
    config = SFTConfig(learning_rate=LEARNING_RATE, schedule="constant", grad_clip=CLIP, beta2=BETA2)
    folder = Path(options["model"]).parent
    with loaded(options) as model:
        trainer = Trainer(model, config, label="sft", state=folder / "state", log=folder / "log.jsonl")
        model.train()
        while job := turn.next():
            rows = samples_of(job)
            loss, _ = train_on(trainer, rows)
            turn.done(loss=loss, **counts(rows))


def stream(turn: Turn, options: Options) -> None:
    model = load(options["model"]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, BETA2), weight_decay=0, fused=True)
    while job := turn.next():
        rows = samples_of(job)
        ids = torch.tensor([token for row in rows for token in row.token_ids])
        width = (len(ids) - 1) // len(rows)
        windows = ids[: len(rows) * width + 1].unfold(0, width + 1, width)  # (B, T + 1)
        logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turn.done(loss=loss.item(), tokens=width * len(rows), targets=width * len(rows), padded=width * len(rows))


def trl(turn: Turn, options: Options) -> None:
    use_trl(turn, options, gradient_checkpointing=True)


def trl_keep(turn: Turn, options: Options) -> None:
    use_trl(turn, options, gradient_checkpointing=False)


def use_trl(turn: Turn, options: Options, **settings: Any) -> None:
    from trl import SFTConfig as TRLConfig
    from trl import SFTTrainer

    size, settings["train_sampling_strategy"] = len(options["batches"][0]), "sequential"
    settings |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    args = TRLConfig(**common(options), per_device_train_batch_size=size, **settings)
    tokenizer, model = peer_model(options)
    trainer = SFTTrainer(model, args=args, train_dataset=dataset(options), processing_class=tokenizer)
    run(trainer, turn, padded_step)


def transformers_trainer(turn: Turn, options: Options) -> None:
    from transformers import DataCollatorForSeq2Seq, TrainingArguments
    from transformers import Trainer as PeerTrainer

    tokenizer, model = peer_model(options)
    collator = DataCollatorForSeq2Seq(tokenizer)
    size = len(options["batches"][0])
    args = TrainingArguments(**common(options), per_device_train_batch_size=size, train_sampling_strategy="sequential")
    run(PeerTrainer(model, args, train_dataset=dataset(options), data_collator=collator), turn, padded_step)


def dataset(options: Options) -> Any:
    from datasets import Dataset

    rows = [Sample(*row) for batch in options["batches"] for row in batch]
    labels = [
        [token if wanted else -100 for token, wanted in zip(row.token_ids, row.loss_mask, strict=True)] for row in rows
    ]
    mask = [[1] * len(row.token_ids) for row in rows]
    return Dataset.from_dict(
        {"input_ids": [list(row.token_ids) for row in rows], "labels": labels, "attention_mask": mask}
    )


def padded_step(job: Job, log: dict[str, float]) -> dict[str, float]:
    rows = samples_of(job)
    return {"loss": log["loss"], **counts(rows), "padded": len(rows) * max(len(row.token_ids) for row in rows)}


def samples_of(job: Job) -> list[Sample]:
    return [Sample(*row) for row in job["rows"]]


def counts(rows: Sequence[Sample]) -> dict[str, float]:
    tokens = sum(len(row.token_ids) for row in rows)
    return {"tokens": tokens, "targets": target_tokens(rows), "padded": tokens}


SIDES = {"ours": ours, "trl": trl, "trl-keep": trl_keep, "trainer": transformers_trainer, "stream": stream}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=3, help="of every side, after one that does not count")
    parser.add_argument("--batch", type=int, default=8, help="problems per step")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    chosen = parser.parse_args()
    peak = matrix_peak()
    with material(chosen) as given:
        samples, _ = to_samples(given.problems[:1000], given.tokenizer, block_size=1024)
        rows = [(row.token_ids, row.loss_mask) for row in samples]
        batches = [rows[step * chosen.batch : (step + 1) * chosen.batch] for step in range(chosen.steps + 1)]
        jobs = [{"part": f"step {step}", "rows": batch} for step, batch in enumerate(batches)]
        options = {"model": given.directory, "batches": batches, "steps": len(batches)}
        steps = take_turns({name: SIDES[name] for name in chosen.sides}, jobs, options)
    check_losses({side: each[0].found["loss"] for side, each in steps.items() if side != "stream"})
    rates = {side: [step.found["tokens"] / step.seconds for step in each[1:]] for side, each in steps.items()}
    flops = [
        3 * forward_flops(given.model.config, tokens=step.found["tokens"], read=step.found["targets"], seen=seen(batch))
        for step, batch in zip(steps["ours"][1:], batches[1:], strict=True)
    ]
    finish(
        {
            "name": "sft_step",
            "model": f"{chosen.size}, random weights, float32",
            "sizes": {"batch": chosen.batch, "steps": chosen.steps},
            "ours": median(rates["ours"]),
            "peer": {side: median(rate) for side, rate in rates.items() if side != "ours"},
            "unit": "tokens of the problems per second, without padding, median over steps",
            "ratio": {side: ratio(rates["ours"], rate) for side, rate in rates.items() if side != "ours"},
            "goal": GOALS,
            "fraction_of_limit": median(
                [work / step.seconds / peak for work, step in zip(flops, steps["ours"][1:], strict=True)]
            ),
            "matrix_peak_gflops": peak / 1e9,
        },
        chosen.out,
        details={
            "seconds": {side: asdict(summary([step.seconds for step in each[1:]])) for side, each in steps.items()},
            "steps": {side: [asdict(step) for step in each] for side, each in steps.items()},
            "peers": {name: version(name) for name in ("transformers", "trl", "accelerate")},
        },
    )


def check_losses(losses: dict[str, float]) -> None:
    """Before the first update all sides have the same weights and problems, so they must have the same loss."""
    if max(losses.values()) - min(losses.values()) > 1e-3:
        raise SystemExit(f"the sides do not do the same work, their first losses differ: {losses}")


def seen(batch: Sequence[Any]) -> float:
    """Pairs of a token and one it looks at."""
    return sum(len(ids) * (len(ids) + 1) / 2 for ids, _ in batch)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return median([a / b for a, b in zip(ours, theirs, strict=True)])


if __name__ == "__main__":
    main()
