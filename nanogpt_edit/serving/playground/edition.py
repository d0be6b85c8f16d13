"""An edit with a dial: a patch on a model of its own, scaled as a whole and fact by fact, undone bit for bit.

ΔW = left · right is a sum over columns, and every column is one fact's. So the edited weight at any setting of the
dial and the switches is the original plus the columns times their factors, added once from the original: it does not
depend on the settings before, at 1 it is the weight that `patch.apply` writes, and at 0 the original itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanogpt_edit.checkpoint.tensors import tensor_sha256
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.editing.patch import EditPatch, add_delta
from nanogpt_edit.editing.patches import scale_patch
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.serving.playground.twin import twin

LARGEST_SCALE = 1.5


@dataclass
class Edition:
    """`model` is `parent` with `patch` at this `scale` and these `switches`; `parent` itself never changes."""

    name: str
    parent_name: str
    parent: GPT
    """As it was when the edit was made: a twin that shares what no edit changes."""
    patch: EditPatch
    model: GPT
    root: str
    """The name of the model that is no edit, below all edits,"""
    earlier: tuple[str, ...]
    """and the names of the edits between, oldest first."""
    settings: Mapping[str, str]
    """What was chosen for it."""
    own: frozenset[str]
    """The names of the tensors that it or an edit below changes: the others it shares with the model below all."""
    scale: float = 1.0
    switches: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        name: str,
        parent_name: str,
        parent: GPT,
        patch: EditPatch,
        *,
        below: Edition | None,
        settings: Mapping[str, str] | None = None,
    ) -> Edition:
        """The edit at full strength, of a patch that is bound to the parent; `below` is the one that its parent is."""
        # An edit below may be turned later: what it changes is kept here as it is now.
        own = frozenset(patch.matrices) | (below.own if below else frozenset())
        before, model = twin(parent, own=own), twin(parent, own=own)
        model.lineage = (*parent.lineage, LineageEntry("edited", patch.describe()))
        root, earlier = (parent_name, ()) if below is None else (below.root, (*below.earlier, below.name))
        switches = [1.0] * len(patch.edited)
        made = cls(name, parent_name, before, patch, model, root, earlier, settings or {}, own, switches=switches)
        made.write()
        return made

    @property
    def setting(self) -> tuple[float, ...]:
        """Where the dial and the switches stand."""
        return (self.scale, *self.switches)

    @property
    def factors(self) -> list[float]:
        """Of every fact's part of ΔW."""
        return [self.scale * switch for switch in self.switches]

    def turn(self, scale: float, switches: list[float]) -> None:
        """Write the weights for this setting. Raises UserError for one that there is not; nothing changes then."""
        if not 0 <= scale <= LARGEST_SCALE or any(not 0 <= each <= LARGEST_SCALE for each in switches):
            raise UserError(f"an edit and each of its facts is scaled by 0 to {LARGEST_SCALE}.")
        if len(switches) != len(self.patch.edited):
            raise UserError(f"there are {len(switches)} switches, and the edit has {len(self.patch.edited)} facts.")
        before = self.scale, self.switches
        self.scale, self.switches = scale, switches
        try:
            self.write()
        except UserError:
            self.scale, self.switches = before
            raise

    @torch.no_grad()
    def write(self) -> None:
        """The original weights plus what the dial and the switches say."""
        for name, weight in self.weights().items():
            self.model.get_parameter(name).copy_(weight)

    def weights(self) -> dict[str, Tensor]:
        """The changed ones by their names, as they are to be."""
        originals: dict[str, Tensor] = {name: self.parent.get_parameter(name) for name in self.patch.matrices}
        if not any(self.factors):
            return originals
        return {name: add_delta(originals[name], update) for name, update in self.as_set().matrices.items()}

    def as_set(self) -> EditPatch:
        """The patch at the present setting. Raises UserError where nothing of it is on."""
        if all(factor == 1 for factor in self.factors):
            return self.patch
        return scale_patch(self.patch, self.factors)

    def saved(self) -> EditPatch:
        """The patch as it is set, with what `revert` needs."""
        return self.as_set().bound_to(self.parent)

    def undone(self) -> bool:
        """Turn the edit off -> are the weights bit for bit those that the patch was made for?"""
        self.turn(0.0, self.switches)
        return all(
            tensor_sha256(self.model.get_parameter(name)) == update.expected_sha256
            for name, update in self.patch.matrices.items()
        )
