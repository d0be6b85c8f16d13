"""The settings of an edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from nanogpt_edit.common.errors import UserError, at_least, did_you_mean
from nanogpt_edit.common.records import Settings, check_fields
from nanogpt_edit.common.settings import Precision

Method = Literal["memit", "rome", "alphaedit", "emmet", "ultraedit", "ft", "locft", "lora"]
Preset = Literal["given", "auto", "published"]
Descent = Literal["adam", "polyak"]


@dataclass(frozen=True)
class Traits:
    """What sets a method apart, as far as others than its own file must know."""

    strength: str | None
    """The setting that protects ordinary text."""
    finds_values: bool = True
    """It finds a value for each fact and solves for the weights by C; the others take slopes of the weights."""
    many_layers: bool = True
    """It changes all of `layers`; the others the last only."""
    one_by_one: bool = False
    """It edits one fact after the other."""
    whole_model: bool = False
    """It changes every linear layer of every block."""


METHODS: dict[str, Traits] = {
    "memit": Traits(strength="covariance_weight"),
    "rome": Traits(strength=None, many_layers=False, one_by_one=True),
    "alphaedit": Traits(strength="ridge"),
    "emmet": Traits(strength="emmet_ridge"),
    "ultraedit": Traits(strength="ultraedit_rate", finds_values=False),
    "ft": Traits(strength="norm_constraint", finds_values=False, many_layers=False),
    "locft": Traits(strength="ft_learning_rate", finds_values=False, many_layers=False),
    "lora": Traits(strength="ft_learning_rate", finds_values=False, whole_model=True),
}
OWN = Traits(strength="covariance_weight")
"""Of a method that a person has written."""

PUBLISHED: dict[str, object] = {
    "context_weight": 0.0,
    "rounds": 1,
    "refine_steps": 0,
    "full_stop": False,
    "anchor_norms": False,
    "descent": "adam",
}
"""What the published method does not have."""


@dataclass(frozen=True)
class EditConfig(Settings):
    """How facts are written into the weights. The defaults are those of the recipe `tiny`, found for its model of three
    blocks; they suit no other size. A model in the folder of a run takes the settings of its recipe, for any other the
    preset `auto` chooses some."""

    preset: Preset = "given"
    """given (the settings are these), auto (what is not given is chosen for the model: layers by their depth and a
    probe, the strength of protection by what the edit's own prompts and ordinary text say), published (exactly the
    authors' MEMIT: one mean key per fact, half of it the bare prompt's, and their descent; nothing added)."""
    given: tuple[str, ...] | None = None
    """auto: settings that are not chosen though they equal their defaults. `ne.edit` and the command line name here
    what they were given."""
    method: Method | str = "memit"
    """memit (all facts at once, spread over layers), rome (one fact after the other, one layer), alphaedit (as memit,
    in the null space of the usual keys), emmet (as memit, but all values are met exactly), ultraedit (one step along
    normalised slopes: no values, no subject, no other text); the baselines ft (constrained fine-tuning of one matrix),
    locft (fine-tuning of one matrix in mini-batches) and lora (adapters on all linear layers); or your own as
    module:Class, a LayerSolver."""
    layers: tuple[int, ...] = (0, 1)
    """Blocks whose MLP output matrix changes, ascending; rome, ft and locft use the last only, lora all blocks."""
    covariance_weight: float = 300.0
    """MEMIT's λ: how many times the keys of ordinary text count against each edited key. More protects neighbours and
    weakens the edit."""
    context_weight: float = 0.1
    """memit: how many times the keys of the edited texts' other tokens count. The published method has 0; a small
    model, whose keys resemble each other, needs about 0.1 to keep an edit from disturbing its own prompt."""
    rounds: int = 1
    """Of methods that find values: how often. Each further round looks at the facts that the edited model says with
    less than p 0.8 (or `stop_probability`, if that is less), finds what they need on top, and adds it."""
    refine_steps: int = 60
    """memit, alphaedit, emmet: steps of a descent on all residuals together, through the edited weights. The published
    methods have 0; in a small model about 40 make the edit surer and the damage elsewhere much smaller."""
    refine_weight: float = 0.0
    """How much the disturbance of ordinary text, E‖ΔW k‖², counts in that descent."""
    refine_kl: float = 60.0
    """How much the KL between the model before and after, on ordinary text, counts in that descent (per nat and token);
    dearer than refine_weight, and closer to what the model's other skills feel."""
    null_share: float = 0.02
    """AlphaEdit: share of the ordinary keys' energy that the null space may hold. More makes room for the edit."""
    ridge: float = 0.01
    """AlphaEdit: λ in front of the identity, in units of an ordinary key's mean squared length; more makes smaller
    changes."""
    emmet_ridge: float = 1e-3
    """EMMET: how far an ordinary key may miss its value, as a share; 0 would be exact, and more than the digits can
    hold where keys resemble each other. In the scale of memit's λ it is this times the width of the MLP."""
    ultraedit_rate: float = 1e-4
    """UltraEdit: η, the length of its step."""
    descent: Descent = "adam"
    """How values are found: adam (steps of `learning_rate`), polyak (each step is as long as the slope and what is
    missing say: fewer than half as many and surer answers, on SmolLM2; what `auto` takes for one fact alone)."""
    precision: Precision = "float32"
    """Of matrix products while values are found (methods that find values): float32, bfloat16, which takes two thirds
    of the time where a processor has a unit for it, or auto (bfloat16 on a GPU that has it). Keys, weights and scores
    are in float32 at least."""
    learning_rate: float = 0.6
    """Adam's step for the values, and in the descent that refines."""
    steps: int = 40
    """Most optimisation steps per fact; of locft and lora, epochs."""
    stop_probability: float = 0.98
    """A fact stops early once its target's tokens have this probability (geometric mean over tokens and contexts)."""
    clamp: float = 3.0
    """Largest ‖δ‖ in multiples of ‖h‖."""
    weight_decay: float = 0.0
    """Weight of ‖δ‖/‖h‖² in the loss."""
    kl_coef: float = 0.0625
    """Weight of KL at "{subject} is a", which keeps what the subject is."""
    anchor_norms: bool = False
    """Scale every value to the norm that values have on the untouched model, against their growth where batches are
    edited in sequence (methods that find values)."""
    n_prefixes: int = 3
    """Texts generated by the model and put before the prompt, so that the edit holds in any context."""
    prefix_tokens: int = 4
    """Length of each such text."""
    covariance_tokens: int = 150_000
    """Most tokens of ordinary text the covariance is taken over."""
    covariance_tolerance: float = 0.03
    """The covariance has converged when doubling its tokens changes it by less than this (relative). Edits of
    `tiny` were the same from 0.08 on (docs/editing.md)."""
    batch_size: int | None = None
    """Facts solved together; further batches are edited in sequence on the weights of the ones before (None: all)."""
    ft_learning_rate: float = 5e-4
    """ft, locft, lora: Adam's step for the weights."""
    ft_batch_size: int = 100
    """locft, lora: facts in a mini-batch."""
    lora_rank: int = 8
    """lora: rank of each matrix's change."""
    norm_constraint: float = 5e-3
    """ft: largest change of a single weight."""
    full_stop: bool = False
    """Write the full stop behind the new answer, too, so that a model that would go on with the sentence ends it."""
    allow_partial_subject: bool = False
    """Accept a subject of which the prompt has only some words."""
    seed: int = 0
    """Chooses the prefixes."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.method not in METHODS and ":" not in self.method:
            known, meant = ", ".join(METHODS), did_you_mean(self.method, METHODS)
            raise UserError(f'is "{self.method}"{meant} There are {known}, and module:Class.', field="method")
        if self.published:
            if self.method != "memit":
                raise UserError(f"is published, the authors' MEMIT, and method is {self.method}.", field="preset")
            for name, value in PUBLISHED.items():
                object.__setattr__(self, name, value)
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise UserError(
                f"{list(self.layers)} must be given once each, ascending, and at least one.", field="layers"
            )
        for name in (
            "covariance_weight",
            "ridge",
            "emmet_ridge",
            "ultraedit_rate",
            "learning_rate",
            "clamp",
            "ft_learning_rate",
            "norm_constraint",
            "stop_probability",
        ):
            if not getattr(self, name) > 0:
                raise UserError(f"is {getattr(self, name)}; it must be positive.", field=name)
        if not 0 <= self.null_share <= 1:
            raise UserError(f"is {self.null_share}; a share is from 0 to 1.", field="null_share")
        at_least(
            1,
            self,
            "rounds",
            "steps",
            "batch_size",
            "ft_batch_size",
            "lora_rank",
            "covariance_tokens",
        )
        at_least(0, self, "refine_steps", "refine_weight", "refine_kl", "context_weight", "weight_decay", "kl_coef")
        at_least(0, self, "n_prefixes", "prefix_tokens", "covariance_tolerance", "seed")

    @property
    def published(self) -> bool:
        """Is it to be exactly the authors' MEMIT?"""
        return self.preset == "published"

    @property
    def edited_layers(self) -> tuple[int, ...]:
        """The layers that change: some methods use the last of `layers` only."""
        return self.layers if self.traits.many_layers else self.layers[-1:]

    @property
    def traits(self) -> Traits:
        return METHODS.get(self.method, OWN)

    @property
    def needs_text(self) -> bool:
        """Does the method take the covariance of ordinary text?"""
        return self.traits.finds_values

    @property
    def refines(self) -> bool:
        """Is there a descent on the residuals after the weights are solved for?"""
        return self.refine_steps > 0 and self.traits.finds_values and self.traits.many_layers

    def with_fields(self, changed: Mapping[str, object]) -> EditConfig:
        """The same with some fields changed, which count as given. Raises UserError for a name that is none."""
        known = {field.name for field in fields(self)}
        for name in changed:
            if name not in known:
                raise UserError(f'an edit has no setting "{name}"{did_you_mean(name, known)}')
        found = replace(self, **dict[str, Any](changed))
        return replace(found, given=(*(self.given or ()), *changed)) if found.preset == "auto" else found

    def is_given(self, name: str) -> bool:
        """Under `auto`: was this setting given, so that it is not chosen?"""
        return name in (self.given or ()) or getattr(self, name) != getattr(EditConfig(), name)

    def facts_at_once(self, facts: int) -> int:
        """How many of so many facts are solved for together."""
        return 1 if self.traits.one_by_one else (self.batch_size or facts)


@dataclass(frozen=True)
class SweepConfig(Settings):
    """What a sweep tries."""

    single_layers: int = 12
    """Most layers tried alone; of more, as many are taken at even distances."""
    spans: tuple[int, ...] = (2, 3, 5)
    """Widths of the groups of layers tried: of each width all that hold the best single layer, and the layers up to it
    that `auto` would take (not where one layer is edited)."""
    strengths: tuple[float, ...] = (1 / 30, 1 / 10, 1 / 3, 3.0, 10.0, 30.0)
    """Factors on the starting λ (memit's covariance_weight, alphaedit's ridge, ft's norm_constraint, …)."""
    clamps: tuple[float, ...] = (0.75, 1.5, 3.0, 6.0)
    """Bounds on ‖δ‖ in multiples of ‖h‖."""
    kl_coefs: tuple[float, ...] = (0.0, 0.0625, 0.25, 1.0)
    """Weights of the KL at "{subject} is a"."""
