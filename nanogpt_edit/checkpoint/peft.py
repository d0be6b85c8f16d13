"""LoRA adapters in PEFT's format: a directory with adapter_config.json and adapter_model.safetensors, out and in.

For each linear layer, as Hugging Face's models have them, two matrices: A (R, in) and B (out, R), whose product times
lora_alpha / r is the change of its weight. What is written here `peft` and vLLM add to the base model; what they write
is read and merged, also where q, k and v have an A each, which are one matrix here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nanogpt_edit.checkpoint import hub, weight_names
from nanogpt_edit.checkpoint.lineage import lineage_json, read_lineage
from nanogpt_edit.checkpoint.tensors import SafetensorsFiles
from nanogpt_edit.checkpoint.wheels import is_wheel
from nanogpt_edit.common import files
from nanogpt_edit.common.distributed import gathered, is_first
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.model.lora import Lora

CONFIG, MATRICES, OURS = "adapter_config.json", "adapter_model.safetensors", "nanogpt_edit.json"
NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
UNKNOWN = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "trainable_token_indices")


@dataclass(frozen=True)
class Factors:
    """One matrix's change, b · a times a scale that all share. R rank, D outputs, F inputs."""

    a: Tensor
    """(R, F) float32."""
    b: Tensor
    """(D, R) float32."""


def save_adapter(lora: Lora, model: GPT, directory: Path | str, *, base: Path | str) -> None:
    """Write what `lora` has learned as an adapter of `base`, the directory (or hub name) of the model it began with.

    `model` is the trained one: its lineage and its tokenizer go along. A directory of ours is named with its
    fingerprint, which is checked when the adapter is loaded. Every process must call it; the first one writes.
    """
    factors = {
        f"{name}.weight": Factors(a=gathered(a.detach()).cpu(), b=gathered(b.detach()).cpu())
        for name, a, b in zip(lora.names, lora.a, lora.b, strict=True)
    }
    if not is_first():
        return
    about: dict[str, object] = {"lineage": lineage_json(model.lineage)}
    known = Path(base) / "lineage.json"
    if known.is_file() and isinstance(found := files.read_json(known).get("fingerprint"), str):
        about["base_fingerprint"] = found
    with files.atomic_directory(Path(directory)) as part:
        write(part, factors, model.config, base=str(base), alpha=lora.scale * lora.rank, about=about)
        if model.tokenizer is not None:
            model.tokenizer.save(part)


def write(
    part: Path,
    factors: Mapping[str, Factors],
    config: GPTConfig,
    *,
    base: str,
    alpha: float,
    about: Mapping[str, object],
) -> None:
    """Write the files of an adapter into the directory `part`: of our weights by name, all of one rank.

    `about` is what only we read, in a file of its own.
    """
    tensors, transposed = dict[str, Tensor](), False
    modules: list[str] = []
    for name, factor in factors.items():
        stored = weight_names.stored_as(name, config)
        transposed = transposed or stored.transposed
        for weight, b in replace(stored, transposed=False).parts(factor.b):
            modules.append(weight.removesuffix(".weight"))
            tensors[f"base_model.model.{modules[-1]}.lora_A.weight"] = factor.a.clone()
            tensors[f"base_model.model.{modules[-1]}.lora_B.weight"] = b.contiguous()
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": max(len(each.a) for each in factors.values()),
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
        "fan_in_fan_out": transposed,
        "inference_mode": True,
    }
    save_file(tensors, part / MATRICES, metadata={"format": "pt"})
    files.write_json(part / CONFIG, said)
    files.write_json(part / OURS, about)


def is_adapter(source: Path | str) -> bool:
    """Is it the directory of an adapter, and of no whole model?"""
    path = Path(source).expanduser()
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


@dataclass(frozen=True)
class Adapter:
    """A directory of PEFT's, read and checked as far as it can be without its base model."""

    path: Path
    base: str
    """The base model's directory, or its name on the hub."""
    rank: int
    scale: float
    targets: tuple[str, ...]
    """The layers it names, or the ends of their names; () where it names them by a pattern."""
    base_fingerprint: str | None
    """What the base model must have, where we wrote the adapter."""
    lineage: tuple[LineageEntry, ...]
    """Of the model that the two make, where we trained it."""

    def check_base(self, fingerprint: str) -> None:
        """Raise UserError where the base model that was found is another one than the adapter was trained on."""
        if self.base_fingerprint is not None and self.base_fingerprint != fingerprint:
            raise UserError(
                f"{self.path}: it was trained on other weights than {self.base} holds now (their fingerprint is "
                f"{fingerprint[:12]}…, not {self.base_fingerprint[:12]}…); name its own base model in {CONFIG}."
            )

    @torch.no_grad()
    def merge(self, model: GPT) -> None:
        """Add every change to the weights of its base model.

        Raises UserError, before anything is changed, for a matrix that has no place in the model, or no partner, or
        another shape, and for a layer that is named and has none.
        """
        tensors = SafetensorsFiles([self.path / MATRICES])
        places = rows_of(model)
        pairs = self._pairs(tensors, places)
        for module, (a, b) in pairs.items():
            name, rows = places[module]
            shape = len(range(*rows.indices(len(model.get_parameter(name))))), model.get_parameter(name).shape[1]
            self._check(tensors, a, (self.rank, shape[1]))
            self._check(tensors, b, (shape[0], self.rank))
        for module, (a, b) in pairs.items():
            name, rows = places[module]
            weight = model.get_parameter(name)
            change = self.scale * (tensors.read(b).float() @ tensors.read(a).float())
            weight[rows] = (weight[rows].float() + change.to(weight.device)).to(weight.dtype)

    def _pairs(self, tensors: SafetensorsFiles, places: Mapping[str, tuple[str, slice]]) -> dict[str, tuple[str, str]]:
        """By module, the names of its A and its B."""
        file, found = self.path / MATRICES, dict[str, dict[str, str]]()
        for name in tensors.entries:
            match = NAME.fullmatch(name)
            if match is None:
                raise UserError(f"{file}: {name} is neither A nor B of a linear layer; only LoRA on these is read.")
            if match[1] not in places:
                raise UserError(
                    f"{file}: {name} changes {match[1]}, which the base model {self.base} does not have as a matrix of "
                    "its own; adapter and base belong to different models."
                )
            found.setdefault(match[1], {})[match[2]] = name
        for module, pair in found.items():
            if set(pair) != {"A", "B"}:
                raise UserError(f"{file}: {module} has lora_{min(pair)} alone; fetch or save the adapter again.")
        for target in self.targets:
            if not any(module == target or module.endswith(f".{target}") for module in found):
                raise UserError(f"{self.path / CONFIG}: it names the layer {target}, of which {MATRICES} has nothing.")
        return {module: (pair["A"], pair["B"]) for module, pair in found.items()}

    def _check(self, tensors: SafetensorsFiles, name: str, shape: tuple[int, int]) -> None:
        entry = tensors.entries[name]
        if entry.shape != shape or entry.dtype is None:
            raise UserError(
                f"{entry.file}: {name} has shape {entry.shape}, where the base model {self.base} and the rank "
                f"{self.rank} call for {shape}; adapter and base belong to different models."
            )


def read(directory: Path | str) -> Adapter:
    """What a directory for which `is_adapter` holds says of itself.

    Raises UserError for a file that is missing, a kind of adapter that is none of ours, a rank that is none, and a base
    model that is not named or not there.
    """
    path = Path(directory).expanduser()
    file, said = path / CONFIG, files.read_json(path / CONFIG)
    if said.get("peft_type") != "LORA":
        raise UserError(f"{file}: it is of the type {said.get('peft_type')}; of adapters only LoRA's are read.")
    known = [name for name in UNKNOWN if said.get(name)] + ["bias"] * (said.get("bias", "none") != "none")
    if known:
        raise UserError(f"{file}: {known[0]} is set, which is not read; merge it with peft (merge_and_unload).")
    if not (path / MATRICES).is_file():
        raise UserError(f"{path}: it has no {MATRICES}; other files are not read, for a pickle can run code.")
    rank, alpha, targets = said.get("r"), said.get("lora_alpha"), said.get("target_modules")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UserError(f'{file}: "r" is {rank}; a rank is a whole number, 1 at least.')
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f'{file}: "lora_alpha" is {alpha}; it is a number.')
    ours = files.read_json(path / OURS) if (path / OURS).is_file() else {}
    fingerprint = ours.get("base_fingerprint")
    return Adapter(
        path=path,
        base=_base(path, said.get("base_model_name_or_path")),
        rank=rank,
        scale=alpha / (math.sqrt(rank) if said.get("use_rslora") else rank),
        targets=tuple(map(str, targets)) if isinstance(targets, list) else (),
        base_fingerprint=fingerprint if isinstance(fingerprint, str) else None,
        lineage=read_lineage(path / OURS) if "lineage" in ours else (),
    )


def _base(path: Path, named: object) -> str:
    """The base model: where the adapter says it is, or beside the adapter under the same name; or on the hub."""
    if not isinstance(named, str) or not named:
        raise UserError(f'{path / CONFIG}: it names no base model; say in "base_model_name_or_path" which it is.')
    for place in (Path(named).expanduser(), path.parent / named, path.parent / Path(named).name):
        if place.exists() and place.resolve() != path.resolve():
            return str(place)
    if is_wheel(named) or hub.is_name(named):
        return named
    raise UserError(
        f'{path / CONFIG}: its base model {named} is not there; say in "base_model_name_or_path" where it is now.'
    )


def rows_of(model: GPT) -> dict[str, tuple[str, slice]]:
    """By the name of a linear layer as Hugging Face's models have it: our weight, and which of its rows it is."""
    places: dict[str, tuple[str, slice]] = {}
    for name, weight in model.named_parameters():
        if weight.dim() != 2 or name in ("embed.weight", "positions.weight"):
            continue
        stored, end = weight_names.stored_as(name, model.config), 0
        for part, rows in zip(stored.names, stored.rows or (len(weight),), strict=True):
            start, end = end, end + rows
            places[part.removesuffix(".weight")] = (name, slice(start, end))
    return places
