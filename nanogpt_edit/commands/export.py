"""`nanogpt-edit export gguf MODEL --out FILE`: a model for the programs that run GGUF files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from nanogpt_edit.checkpoint.gguf_types import FileType
from nanogpt_edit.commands.parse import run_inner
from nanogpt_edit.common.sizes import size_in_words


@dataclass(frozen=True)
class Gguf:
    """Write a model as one GGUF file, which llama.cpp, Ollama and LM Studio run, with an Ollama Modelfile beside it."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A model directory, a hub name (gpt2), a .gguf file, or a nanoGPT ckpt.pt."""
    out: Path
    """The file, as in tiny.gguf; the Modelfile is tiny.Modelfile then."""
    type: FileType = "f32"
    """Of the matrices: f32 is exact, bf16 and f16 take half of it, q8_0 a quarter (8 bits in blocks of 32)."""


VERBS: dict[str, type[Any]] = {"gguf": Gguf}


def export(arguments: list[str]) -> int:
    """The verb `export`."""
    return run_inner(VERBS, arguments, verb="export", work=gguf)


def gguf(_: str, chosen: Gguf) -> int:
    from nanogpt_edit.checkpoint.checkpoint import load  # here, for it imports torch
    from nanogpt_edit.checkpoint.gguf_export import refuse_existing
    from nanogpt_edit.serving.export import export_gguf

    refuse_existing(chosen.out)
    beside = export_gguf(load(chosen.model), chosen.out, type=chosen.type)
    print(f"The model: {chosen.out} ({size_in_words(chosen.out.stat().st_size)}, {chosen.type})")
    print(f"For Ollama: ollama create {chosen.out.stem} -f {beside}")
    return 0
