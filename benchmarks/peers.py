"""transformers' and TRL's trainers as sides of a comparison: the same model, the same settings, one step per turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from turns import Job, Options, Turn

LEARNING_RATE, BETA2, CLIP = 1e-4, 0.95, 1.0  # of every side


def peer_model(options: Options) -> tuple[Any, Any]:
    """transformers' tokenizer and model of the same directory, on the side's device, without dropout."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    tokenizer.pad_token = tokenizer.eos_token
    config = AutoConfig.from_pretrained(options["model"])
    for name in {"resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout"} & vars(config).keys():
        setattr(config, name, 0.0)
    dtype = torch.bfloat16 if options.get("precision") == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(options["model"], config=config, dtype=dtype)
    return tokenizer, model.to(options.get("device", "cpu"))


def common(options: Options) -> dict[str, Any]:
    """Settings of transformers' and TRL's trainers that make them do the same step as ours."""
    return {
        "output_dir": str(Path(options["model"]).parent / "peer"),
        "max_steps": options["steps"],
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "adam_beta2": BETA2,
        "max_grad_norm": CLIP,
        "optim": "adamw_torch_fused",
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def run(trainer: Any, turn: Turn, found: Callable[[Job, dict[str, float]], dict[str, float]]) -> None:
    """Let a trainer of transformers' kind take one step per turn; `found` makes what is counted of job and log."""
    from transformers import TrainerCallback

    class TakeTurns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            job = turn.next()
            assert job is not None
            self.job = job

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" in logs:  # the last thing of a step
                turn.done(**found(self.job, {name: float(value) for name, value in logs.items()}))

    trainer.add_callback(TakeTurns())
    trainer.train()
    turn.next()
