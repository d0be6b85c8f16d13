"""The adapter that a stage keeps beside its model, and the base model that it names."""

from __future__ import annotations

from pathlib import Path

from nanogpt_edit.checkpoint import checkpoint, peft
from nanogpt_edit.checkpoint.lineage import read_lineage
from nanogpt_edit.common import distributed
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.records import StageName
from nanogpt_edit.training.trainer import Trainer


def keep_base(model: GPT, start: GPT | str | Path | None, folder: RunFolder, stage: StageName) -> Path:
    """Where the model that the adapter of a stage begins with lies: the directory that the stage starts from, or
    <stage>-base, written here, where that is no directory of the very same weights.

    A model that was given rows for new tokens when it was loaded, or had them fitted, is none that lies anywhere.
    """
    path = Path(start).expanduser() if isinstance(start, str | Path) else None
    if path is not None and (path / "config.json").is_file():
        own = read_lineage(path / "lineage.json")
        if not any(done.kind in ("vocabulary", "fitted") for done in model.lineage if done not in own):
            return path.resolve()
    name = f"{stage}-base"
    if distributed.is_first() and not folder.has_model(name):
        checkpoint.save(model, folder.model(name))
    distributed.barrier()
    return folder.model(name).resolve()


def keep_adapter(trainer: Trainer, base: Path, folder: RunFolder, stage: StageName, done: LineageEntry) -> None:
    """Write what the trainer has learned into <stage>-adapter, as an adapter of `base`."""
    assert trainer.lora is not None
    with trainer.parallel.gathered() as model:
        model.lineage = (*model.lineage, done)
        peft.save_adapter(trainer.lora, model, folder.model(f"{stage}-adapter"), base=base)
