"""One stage by itself, from any model, in a folder laid out like a run's: the verbs of one stage do this."""

from __future__ import annotations

from pathlib import Path

import torch

from nanogpt_edit.common import distributed
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.settings import differences, read_settings, write_settings
from nanogpt_edit.common.terminal import say
from nanogpt_edit.pipeline.checks import check_rewards, check_sizes
from nanogpt_edit.pipeline.folder import MAY_CHANGE, RunFolder
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.stages import Remarks, Stage, Start, make_model
from nanogpt_edit.pipeline.trackers.tracker import TrackerName
from nanogpt_edit.pipeline.tracking import tracked


def make_alone(
    stage: Stage,
    inputs: RunInputs,
    folder: RunFolder,
    device: torch.device,
    start: Start,
    *,
    settings: object,
    track: TrackerName | None = None,
) -> Remarks:
    """Make the stage's model in the folder, or go on with it; one that is done is left alone, and said so.

    `settings` are kept beside it; a tracker, if any, is told of it. Raises UserError when the folder holds the
    stage with other settings, and for problems beside conversations, which nothing would read.
    """
    check_sizes(inputs.recipe)
    check_rewards(inputs.recipe)
    problems, chats = inputs.recipe.problems.path, inputs.recipe.sft.chats
    if stage.name == "sft" and None not in (problems, chats):
        raise UserError(
            f"the problems {problems} (problems.path) are given, but SFT learns the conversations of {chats} "
            "(sft.chats), so nothing would read them; leave one of them out."
        )
    with folder.locked():
        inputs.prepare(*stage.reads)
        keep_settings(settings, folder.path / f"{stage.name}.toml", begun=folder.begun(stage.name))
        if folder.has_model(stage.name):
            again = f"to do it again, choose another --out, or delete {folder.model(stage.name)}"
            say(f"{stage.name}: done before; {again}.")
        folder.keep_environment(device, **inputs.counts)
        with tracked(inputs.recipe, folder.path, track):
            return make_model(stage, inputs, folder, device, start)


def keep_settings(settings: object, path: Path, *, begun: bool) -> None:
    """Write what was chosen; once the stage has begun, check that the file there holds the same.

    Raises UserError naming what differs.
    """
    if not distributed.is_first():
        return
    if path.exists() and begun:
        try:
            before = read_settings(type(settings), path)
        except UserError as error:
            raise UserError(
                f"{path.parent} holds this stage with settings that cannot be read here, perhaps of another version; "
                f"choose another --out, or delete the folder. ({error})"
            ) from None
        changed = [name for name in differences(before, settings) if name not in MAY_CHANGE]
        if changed:
            raise UserError(
                f"{path.parent} holds this stage with other settings ({', '.join(changed)}); choose another --out, or "
                f"delete the folder."
            )
    write_settings(settings, path)
