"""A model for the programs that run GGUF files: the file itself, and beside it a Modelfile for Ollama."""

from __future__ import annotations

import json
from pathlib import Path

from nanogpt_edit.checkpoint.gguf_export import MODELFILE, write_gguf
from nanogpt_edit.checkpoint.gguf_types import FileType
from nanogpt_edit.checkpoint.tensors import tensor_sha256
from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.files import write_text
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.editing.adapters import described
from nanogpt_edit.editing.patch import EditPatch
from nanogpt_edit.editing.patch_files import carried_patches
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.ollama import modelfile


@checked
@progress("writing a GGUF file")
def export_gguf(model: GPT, out: str | Path, *, type: FileType = "f32") -> Path:
    """Write `model` as the GGUF file `out`, and beside it `<name>.Modelfile` for Ollama; returns the latter's path.

    `type` is f32 (exact), bf16, f16 or q8_0 (8 bits in blocks of 32). The metadata say what was done to the model
    (`nanogpt_edit.lineage`) and list the facts of the patches that it carries (`nanogpt_edit.patches`).
    Raises UserError where a file is there already and for what no GGUF file can say (see `write_gguf`).
    """
    file = Path(out)
    beside = file.with_suffix(MODELFILE)
    patches = [described(name, patch) for name, patch in patches_in(model)]
    notes = {"nanogpt_edit.patches": json.dumps(patches, ensure_ascii=False)} if patches else {}
    write_gguf(model, file, type=type, notes=notes)
    write_text(beside, modelfile(model, file))
    return beside


def patches_in(model: GPT) -> list[tuple[str, EditPatch]]:
    """The patches in the directory that the model was loaded from, if its weights are still those they made."""
    carried = carried_patches(model.source) if model.source is not None and model.source.is_dir() else []
    last = {name: update for _, patch in carried for name, update in patch.matrices.items()}
    stands = all(
        update.undo is not None and tensor_sha256(model.get_parameter(name)) == update.undo.edited_sha256
        for name, update in last.items()
    )
    return carried if stands else []
