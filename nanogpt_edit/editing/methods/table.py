"""Which solver, or which descent, a method's name stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from nanogpt_edit.editing.config import EditConfig, Method
from nanogpt_edit.editing.contexts import LocatedFact
from nanogpt_edit.editing.covariance import Covariance
from nanogpt_edit.editing.methods.alphaedit import AlphaEditSolver
from nanogpt_edit.editing.methods.emmet import EmmetSolver
from nanogpt_edit.editing.methods.finetune import finetune
from nanogpt_edit.editing.methods.locft import locft
from nanogpt_edit.editing.methods.lora import lora
from nanogpt_edit.editing.methods.memit import EditedLayer, LayerSolver, MemitSolver
from nanogpt_edit.editing.methods.rome import RomeSolver
from nanogpt_edit.editing.methods.ultraedit import ultraedit
from nanogpt_edit.editing.values import TargetValues
from nanogpt_edit.model.gpt import GPT

Descent = Callable[[GPT, Sequence[LocatedFact], EditConfig, Mapping[int, EditedLayer]], list[TargetValues]]
"""Leaves the changes in the model and in the layers, and gives what is known of each batch's facts."""

SOLVERS: dict[Method, type[LayerSolver]] = {
    "memit": MemitSolver,
    "rome": RomeSolver,
    "alphaedit": AlphaEditSolver,
    "emmet": EmmetSolver,
}
DESCENTS: dict[Method, Descent] = {"ultraedit": ultraedit, "ft": finetune, "locft": locft, "lora": lora}


def solver_of(covariance: Covariance, config: EditConfig, device: torch.device) -> LayerSolver:
    """The method's for one layer; on the CPU beside Apple's GPUs, which have no float64."""
    return SOLVERS[config.method](covariance.matrix.to("cpu" if device.type == "mps" else device), config)
