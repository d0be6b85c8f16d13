"""Data sets from the Hugging Face hub, through the `datasets` library (imported only when one is asked for)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from nanogpt_edit.checkpoint.hub import answers
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.rows import ROW_SUFFIXES

Row = Mapping[str, object]

FILE_SUFFIXES = (*ROW_SUFFIXES, ".txt", ".raw", ".md", ".gz")

# Short names people use, and the configuration a data set has no default for.
ALIASES = {
    "gsm8k": "openai/gsm8k:main",
    "openai/gsm8k": "openai/gsm8k:main",
    "wikitext": "Salesforce/wikitext:wikitext-2-raw-v1",
    "Salesforce/wikitext": "Salesforce/wikitext:wikitext-2-raw-v1",
}


def check_name(source: str) -> None:
    """Raise UserError unless `source` looks like a hub data set: owner/name, owner/name:configuration, a short name.

    Call it for what does not exist on the disk: a misspelt path should be reported as one, not sought on the hub.
    """
    if is_saved(Path(source)):
        return
    name = source.partition(":")[0]
    path_like = source.startswith((".", "/", "~")) or name.endswith(FILE_SUFFIXES) or name.count("/") != 1
    if path_like and source not in ALIASES:
        raise UserError(
            f"{source}: no such file or folder. Give a path that exists, or a hub data set as owner/name "
            f"(for example openai/gsm8k)."
        )


def is_saved(folder: Path) -> bool:
    """Has the `datasets` library written this folder (`save_to_disk`)?"""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read_splits(source: str, *, wanted: Iterable[str]) -> dict[str, list[Row]]:
    """Rows of those of the `wanted` splits that the data set has, in its order; from the local cache when offline.

    Raises UserError, saying the ways to supply the data, when it cannot be had.
    """
    wanted = list(wanted)
    data = _load_saved(source) if is_saved(Path(source)) else _load(source, split=None)
    if not isinstance(data, Mapping) and is_saved(Path(source)):
        data = {"train": data}  # a folder of one split
    if not isinstance(data, Mapping):
        raise UserError(f"{source}: the hub gave no splits for this data set; expected {' and '.join(wanted)}.")
    found: dict[str, list[Row]] = {split: [dict(row) for row in data[split]] for split in wanted if split in data}
    if not found:
        raise UserError(f"{source}: no split named {' or '.join(wanted)}; it has {', '.join(map(str, data))}.")
    return found


def read_rows(source: str, *, split: str) -> list[Row]:
    """Rows of one split. Raises UserError as `read_splits` does."""
    if is_saved(Path(source)):
        return read_splits(source, wanted=[split])[split]
    data = _load(source, split=split)
    if not isinstance(data, Iterable):
        raise UserError(f"{source}: the hub gave no rows for split {split}.")
    return [dict(row) for row in data]


def _load_saved(folder: str) -> object:
    import datasets

    try:
        return datasets.load_from_disk(folder)
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{folder}: the data set saved there cannot be read ({reason}); save it again.") from None


def _load(source: str, *, split: str | None) -> object:
    name, _, configuration = ALIASES.get(source, source).partition(":")
    try:
        import datasets
    except ImportError:
        raise UserError(f"{name}: hub data sets need the `datasets` package (pip install datasets).") from None
    offline, alone = bool(os.environ.get("HF_HUB_OFFLINE")), False
    try:
        alone = not offline and not _reachable(name)
        with _cache_alone() if alone else nullcontext():
            loaded: object = datasets.load_dataset(name, configuration or None, split=split)
        return loaded
    except Exception as error:  # the library raises a dozen unrelated types for "not reachable" and "not there"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if alone or offline:
            reason = "the hub does not answer" if alone else f"HF_HUB_OFFLINE is set ({reason})"
        raise UserError(
            f"{name}: no such file or folder here, and not to be had from the hub or its local cache: "
            f"{reason}. Two ways to supply it: download it once where there is a network (it stays in the cache "
            f"HF_HOME points to), or pass a local file or folder with the same data."
        ) from None


def _reachable(name: str) -> bool:
    from huggingface_hub import errors, hf_hub_url

    try:
        return answers(hf_hub_url(name, "README.md", repo_type="dataset"))
    except errors.HfHubHTTPError:
        return True  # whatever it refuses, the library says it


@contextmanager
def _cache_alone() -> Iterator[None]:
    """Keeps `datasets` from asking a network that does not answer: it would try again for half a minute."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
