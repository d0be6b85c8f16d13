"""Which solver, or which descent, a method's name stands for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import torch

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.own_code import find_own
from nanogpt_edit.editing.config import EditConfig
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

SOLVERS: dict[str, type[LayerSolver]] = {
    "memit": MemitSolver,
    "rome": RomeSolver,
    "alphaedit": AlphaEditSolver,
    "emmet": EmmetSolver,
}
DESCENTS: dict[str, Descent] = {"ultraedit": ultraedit, "ft": finetune, "locft": locft, "lora": lora}


def find_solver(method: str) -> type[LayerSolver]:
    """The solver of a method; of `module:Class` the class, importable or in a file of this folder.

    Raises UserError for what cannot be found or is no `LayerSolver`.
    """
    if method in SOLVERS:
        return SOLVERS[method]
    found = find_own(method, what="method", kind="class")
    if not (isinstance(found, type) and issubclass(found, LayerSolver)) or inspect.isabstract(found):
        raise UserError(f'method "{method}" is no LayerSolver with a `right` of its own; derive it from one.')
    return found


def solver_of(covariance: Covariance, config: EditConfig, device: torch.device) -> LayerSolver:
    """The method's for one layer; on the CPU beside Apple's GPUs, which have no float64."""
    return find_solver(config.method)(covariance.matrix.to("cpu" if device.type == "mps" else device), config)
