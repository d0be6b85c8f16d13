"""Which solver a method's name stands for."""

from __future__ import annotations

import torch

from nanogpt_edit.editing.config import EditConfig, Method
from nanogpt_edit.editing.covariance import Covariance
from nanogpt_edit.editing.methods.alphaedit import AlphaEditSolver
from nanogpt_edit.editing.methods.memit import LayerSolver, MemitSolver
from nanogpt_edit.editing.methods.rome import RomeSolver

SOLVERS: dict[Method, type[LayerSolver]] = {"memit": MemitSolver, "rome": RomeSolver, "alphaedit": AlphaEditSolver}


def solver_of(covariance: Covariance, config: EditConfig, device: torch.device) -> LayerSolver:
    """The method's for one layer; on the CPU beside Apple's GPUs, which have no float64."""
    return SOLVERS[config.method](covariance.matrix.to("cpu" if device.type == "mps" else device), config)
