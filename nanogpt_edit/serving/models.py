"""The models that a server offers, by name, and who may use them when.

A run's folder gives its checkpoints (base, sft, grpo, edited), a model its own name, and a patch the name of the model
that it was made for with its own behind a plus (grpo+facts). A model is loaded when it is first asked for, and kept.

Whoever writes texts says so (`begin`, `end`); whoever changes weights waits until they are done, and nobody begins
before the change is over (`exclusive`).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from nanogpt_edit.checkpoint.checked import format_of
from nanogpt_edit.checkpoint.checkpoint import load
from nanogpt_edit.common.device import choose_device
from nanogpt_edit.common.errors import UserError, did_you_mean
from nanogpt_edit.common.memory import give_back
from nanogpt_edit.editing.patch_files import FORMAT, load_patch
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.serving.shared_tensors import SharedTensors

STAGES = ("base", "sft", "grpo", "edited")  # of a run, in the order in which they are made


class UnknownModel(UserError):
    """Nothing of that name is offered."""


@dataclass(frozen=True)
class About:
    """What a model is: `About("grpo", "runs/tiny/grpo", None, 711_808, 512, ("…",), "grpo", True)`."""

    id: str
    source: str
    parent: str | None
    """The name of the model that it is an edit of."""
    parameters: int
    block_size: int
    lineage: tuple[str, ...]
    stage: str | None
    """The kind of what was done to it last."""
    has_chat_template: bool


@dataclass
class _Place:
    """One name's place on the shelf."""

    make: Callable[[], GPT]
    source: str
    parent: str | None = None
    model: GPT | None = None
    loading: threading.Lock = field(default_factory=threading.Lock)
    writing: bool = False
    waiting: int = 0  # for `exclusive`, or in it
    held: bool = False
    version: int = 0  # of the weights


class Shelf:
    """Models by name. Safe to use from several threads."""

    def __init__(
        self,
        *,
        run_folder: Path | None = None,
        device: str = "auto",
        watching: bool = False,
        shared: SharedTensors | None = None,
    ) -> None:
        """The weights of all models are moved to `shared`, where it is given."""
        self.run_folder, self.device, self._watching, self.shared = run_folder, device, watching, shared
        self._places: dict[str, _Place] = {}
        self._changed = threading.Condition()
        self.on_change: Callable[[], None] = lambda: None
        """Called after a model may be used again, has come or has gone."""

    @classmethod
    def of(cls, sources: Sequence[str], *, device: str = "auto", shared: SharedTensors | None = None) -> Shelf:
        """A shelf of runs' folders, models (whatever `load` takes) and patches of these models.

        The first model and those that have patches are loaded at once.
        Raises UserError for what is none of them, and for a patch of a model that is not there.
        """
        patches = [source for source in sources if is_patch(Path(source))]
        folders = [Path(source) for source in sources if (Path(source) / "recipe.toml").is_file()]
        shelf = cls(run_folder=folders[0] if folders else None, device=device, shared=shared)
        for source in sources:
            if source not in patches:
                shelf._put_source(source, several=len(folders) > 1)
        if not shelf.names():
            raise UserError("there is no model to serve; name a run's folder or a model beside the patches.")
        shelf.open(shelf.names()[0])
        for source in patches:
            shelf._put_patch(Path(source))
        return shelf

    def _put_source(self, source: str, *, several: bool) -> None:
        folder = Path(source)
        if not (folder / "recipe.toml").is_file():
            return self._put(folder.name or source, _Place(partial(self._load, source), source))
        if not self._put_stages(folder, prefix=f"{folder.name}/" if several else ""):
            raise UserError(f"{folder}: this run has no model yet; wait until its first stage is done.")

    def _put_stages(self, folder: Path, *, prefix: str = "") -> int:
        """Offer the checkpoints of a run that are not offered yet -> how many there are."""
        found = [stage for stage in STAGES if (folder / stage / "config.json").is_file()]
        for stage in found:
            if f"{prefix}{stage}" not in self.names():
                self._put(f"{prefix}{stage}", _Place(partial(self._load, folder / stage), str(folder / stage)))
        return len(found)

    @classmethod
    def watching(cls, run_folder: Path, *, device: str = "auto", shared: SharedTensors | None = None) -> Shelf:
        """The shelf of a run that may be under way; `follow` takes what it has made since.

        Raises UserError for a folder that is no run's.
        """
        if not (run_folder / "recipe.toml").is_file():
            raise UserError(f"{run_folder}: no run is here (no recipe.toml); name the folder that `run --out` fills.")
        shelf = cls(run_folder=run_folder, device=device, watching=True, shared=shared)
        shelf.follow()
        return shelf

    def follow(self) -> None:
        """Offer the checkpoints that the watched run has made since."""
        if self.run_folder is not None and self._watching:
            self._put_stages(self.run_folder)

    def _put(self, name: str, place: _Place) -> None:
        with self._changed:
            if name in self._places:
                raise UserError(f'two models would be called "{name}"; rename one of the folders or files.')
            self._places[name] = place

    def _load(self, source: str | Path) -> GPT:
        model = load(source, device=choose_device(self.device))
        if model.tokenizer is None:
            raise UserError(
                f"{source}: the model carries no tokenizer; give its directory the tokenizer.json it needs."
            )
        return model

    def _put_patch(self, file: Path) -> None:
        """Offer the model that the patch was made for with the patch in it."""
        patch, refusals = load_patch(file), list[str]()
        for name in self.names():
            try:
                patch.check(self.open(name))
            except UserError as error:
                refusals.append(f"{name}: {error}")
                continue
            model = copy.deepcopy(self.open(name))
            patch.apply(model)
            return self.add(f"{name}+{file.stem}", model, parent=name, source=str(file))
        raise UserError(f"{file}: the patch of none of these models. {refusals[-1]}")

    def names(self) -> list[str]:
        """What is offered, in the order in which it was named."""
        with self._changed:
            return list(self._places)

    def _place(self, name: str) -> _Place:
        with self._changed:
            if name not in self._places:
                raise UnknownModel(
                    f'there is no model "{name[:80]}"{did_you_mean(name[:80], self._places)} '
                    f"There are: {', '.join(self._places)}."
                )
            return self._places[name]

    def open(self, name: str) -> GPT:
        """The model of that name, loaded if it is not yet.

        Raises UnknownModel for a name that is not offered, and UserError where loading fails.
        """
        place = self._place(name)
        with place.loading:
            if place.model is None:
                place.model = self._in_place(place.make())
        return place.model

    def _in_place(self, model: GPT) -> GPT:
        if self.shared is not None:
            self.shared.take(model)
        give_back()  # what loading took, and where the weights have been before
        return model.eval()

    def is_open(self, name: str) -> bool:
        """Is it loaded? Raises UnknownModel for a name that is not offered."""
        return self._place(name).model is not None

    def parent(self, name: str) -> str | None:
        """The name of the model that this one is an edit of. Raises UnknownModel."""
        return self._place(name).parent

    def about(self, name: str) -> dict[str, object]:
        """The fields of `About`. Raises as `open` does."""
        place, model = self._place(name), self.open(name)
        return asdict(
            About(
                id=name,
                source=place.source,
                parent=place.parent,
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                block_size=model.config.block_size,
                lineage=tuple(map(str, model.lineage)),
                stage=model.lineage[-1].kind if model.lineage else None,
                has_chat_template=tokenizer_of(model).chat_template is not None,
            )
        )

    def add(self, name: str, model: GPT, *, parent: str | None = None, source: str = "") -> None:
        """Offer `model` under a new name. Raises UserError where the name is taken."""
        tokenizer_of(model)
        self._put(name, _Place(lambda: model, source or name, parent, self._in_place(model)))
        self.on_change()

    def remove(self, name: str) -> None:
        """Offer it no more, once the texts that it is writing are done. Raises UnknownModel."""
        with self.exclusive(name), self._changed:
            self._places.pop(name, None)
        self.on_change()

    @contextmanager
    def exclusive(self, name: str) -> Iterator[GPT]:
        """The model with nobody else at it: for whoever changes its weights, or runs it beside the server.

        Texts that are being written are finished first; those asked for meanwhile wait. Raises as `open` does.
        """
        place, model = self._place(name), self.open(name)
        with self._changed:
            place.waiting += 1
            self._changed.wait_for(lambda: not place.writing and not place.held)
            place.held = True
        try:
            yield model
        finally:
            with self._changed:
                place.waiting -= 1
                place.held = False
                place.version += 1
                self._changed.notify_all()
            self.on_change()

    def begin(self, name: str) -> int | None:
        """Texts are going to be written: the version of the weights, which stand until `end`; None where somebody has
        asked for the model alone, or has it: nothing is to be begun then."""
        with self._changed:
            place = self._places.get(name)
            if place is None or place.waiting:
                return None
            place.writing = True
            return place.version

    def end(self, name: str) -> None:
        """Nothing is being written any more."""
        with self._changed:
            if name in self._places:
                self._places[name].writing = False
            self._changed.notify_all()


def is_patch(path: Path) -> bool:
    """Is this the file of a patch? Raises UserError for a .safetensors file that is damaged."""
    return path.suffix == ".safetensors" and path.is_file() and (format_of(path) or "").startswith(FORMAT[:18])
