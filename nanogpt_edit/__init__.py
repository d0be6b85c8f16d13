"""Teach a GPT to reason, edit the facts in its weights, and prove what each step gained and cost.

    import nanogpt_edit as ne

    model = ne.load("runs/tiny/grpo")
    for completion in ne.generate(model, ["Leo has 10 toys …"], n=4):
        print(completion.text)

Nothing heavy is imported before the first of these names is used.
Notes and progress go to standard error through the logger "nanogpt_edit"; its level, or `ne.quiet()`, silences them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.version import __version__ as __version__
from nanogpt_edit.common.waiting import wait_patiently

if TYPE_CHECKING:
    from nanogpt_edit.api import edit, evaluate, grpo, pretrain, run, score, sft, trace
    from nanogpt_edit.checkpoint.checkpoint import load, save
    from nanogpt_edit.checkpoint.hub_repos import pull, push
    from nanogpt_edit.common.terminal import quiet
    from nanogpt_edit.data.chat_samples import to_chat_samples
    from nanogpt_edit.data.chats import Chat, read_chats
    from nanogpt_edit.data.fact_files import read_facts
    from nanogpt_edit.data.facts import Fact, Neighbour
    from nanogpt_edit.data.problems import Problem, read_problems
    from nanogpt_edit.data.samples import to_samples
    from nanogpt_edit.data.text import token_stream
    from nanogpt_edit.editing.config import EditConfig
    from nanogpt_edit.editing.patch_files import load_patch
    from nanogpt_edit.engine.generate import generate
    from nanogpt_edit.evaluation.config import EvaluateConfig
    from nanogpt_edit.model.chat_template import Message, render_chat
    from nanogpt_edit.model.lora_config import LoraConfig
    from nanogpt_edit.pipeline.recipe import ModelConfig, load_recipe
    from nanogpt_edit.serving.export import export_gguf
    from nanogpt_edit.tracing.config import TraceConfig
    from nanogpt_edit.training.grpo_config import GRPOConfig
    from nanogpt_edit.training.pretrain_config import PretrainConfig
    from nanogpt_edit.training.sft_config import SFTConfig

__all__ = [
    "Chat",
    "EditConfig",
    "EvaluateConfig",
    "Fact",
    "GRPOConfig",
    "LoraConfig",
    "Message",
    "ModelConfig",
    "Neighbour",
    "PretrainConfig",
    "Problem",
    "SFTConfig",
    "TraceConfig",
    "UserError",
    "edit",
    "evaluate",
    "export_gguf",
    "generate",
    "grpo",
    "load",
    "load_patch",
    "load_recipe",
    "pretrain",
    "pull",
    "push",
    "quiet",
    "read_chats",
    "read_facts",
    "read_problems",
    "render_chat",
    "run",
    "save",
    "score",
    "sft",
    "to_chat_samples",
    "to_samples",
    "token_stream",
    "trace",
]

_HOMES = {
    "Chat": "nanogpt_edit.data.chats",
    "EditConfig": "nanogpt_edit.editing.config",
    "EvaluateConfig": "nanogpt_edit.evaluation.config",
    "Fact": "nanogpt_edit.data.facts",
    "GRPOConfig": "nanogpt_edit.training.grpo_config",
    "LoraConfig": "nanogpt_edit.model.lora_config",
    "Message": "nanogpt_edit.model.chat_template",
    "ModelConfig": "nanogpt_edit.pipeline.recipe",
    "Neighbour": "nanogpt_edit.data.facts",
    "PretrainConfig": "nanogpt_edit.training.pretrain_config",
    "Problem": "nanogpt_edit.data.problems",
    "SFTConfig": "nanogpt_edit.training.sft_config",
    "TraceConfig": "nanogpt_edit.tracing.config",
    "edit": "nanogpt_edit.api",
    "evaluate": "nanogpt_edit.api",
    "export_gguf": "nanogpt_edit.serving.export",
    "generate": "nanogpt_edit.engine.generate",
    "grpo": "nanogpt_edit.api",
    "load": "nanogpt_edit.checkpoint.checkpoint",
    "load_patch": "nanogpt_edit.editing.patch_files",
    "load_recipe": "nanogpt_edit.pipeline.recipe",
    "pretrain": "nanogpt_edit.api",
    "pull": "nanogpt_edit.checkpoint.hub_repos",
    "push": "nanogpt_edit.checkpoint.hub_repos",
    "quiet": "nanogpt_edit.common.terminal",
    "read_chats": "nanogpt_edit.data.chats",
    "read_facts": "nanogpt_edit.data.fact_files",
    "read_problems": "nanogpt_edit.data.problems",
    "render_chat": "nanogpt_edit.model.chat_template",
    "run": "nanogpt_edit.api",
    "save": "nanogpt_edit.checkpoint.checkpoint",
    "score": "nanogpt_edit.api",
    "sft": "nanogpt_edit.api",
    "to_chat_samples": "nanogpt_edit.data.chat_samples",
    "to_samples": "nanogpt_edit.data.samples",
    "token_stream": "nanogpt_edit.data.text",
    "trace": "nanogpt_edit.api",
}


wait_patiently()


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nanogpt_edit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
