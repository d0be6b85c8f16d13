"""Models by their name on the Hugging Face hub, through huggingface_hub's cache; only the files we read are fetched."""

from __future__ import annotations

import re
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import nearest, read_json

NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9]([\w.-]*\w)?(/[A-Za-z0-9]([\w.-]*\w)?)?", re.ASCII)
LONGEST_NAME = 96
OPTIONAL = (
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE",
    "lineage.json",
)


def is_name(source: str) -> bool:
    """Whether `source` can be a name on the hub, by the hub's rules: `gpt2`, `Qwen/Qwen2.5-0.5B`."""
    return NAME.fullmatch(source) is not None and len(source) <= LONGEST_NAME


def fetch(name: str) -> Path:
    """The local directory with the files of model `name`, downloaded where the cache has not got them all.

    What is cached is used without asking the network, so a model stays the same until its cache is cleared.
    Raises UserError when a file cannot be had: it names the file and the ways to supply it.
    """
    try:
        return _collect(name, local=True)
    except UserError:
        if not _reachable(name):
            raise
    return _collect(name, local=False)


def answers(url: str) -> bool:
    """Whether the hub answers a request for `url`: one, without the patient retries of a download.

    A network that connects and is slow counts as an answer. Raises HfHubHTTPError when the answer is a refusal.
    """
    from huggingface_hub import errors, get_hf_file_metadata

    try:
        get_hf_file_metadata(url)
    except errors.HfHubHTTPError:
        raise
    except Exception as error:  # offline, no route, no answer: each in the words of the HTTP library in use
        return "ReadTimeout" in type(error).__name__
    return True


def cached(name: str, file: str) -> Path | None:
    """The path of one file of model `name` if the cache has it; never asks the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None


def shard_names(index: Path) -> tuple[str, ...]:
    """The files that a model.safetensors.index.json lists, sorted. Raises UserError when it lists none."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f'{index}: "weight_map" is missing; the file is damaged, fetch it again.')
    return tuple(sorted({str(file) for file in weight_map.values()}))


def _collect(name: str, *, local: bool) -> Path:
    """All files `checkpoint` reads, from the cache alone if `local`; their directory."""
    directory = _fetch(name, "config.json", revision=None, local=local).parent
    revision = directory.name  # all files from the commit of the first
    if _fetch_optional(name, "tokenizer.json", revision, local) is None:
        older = [_fetch_optional(name, file, revision, local) for file in ("vocab.json", "merges.txt")]
        if local and None in older:
            _fetch(name, "tokenizer.json", revision, local)  # says that it is missing
    for file in OPTIONAL:
        _fetch_optional(name, file, revision, local)
    index = _fetch_optional(name, "model.safetensors.index.json", revision, local)
    for file in ("model.safetensors",) if index is None else shard_names(index):
        _fetch(name, file, revision, local)
    return directory


def _reachable(name: str) -> bool:
    """Whether the hub answers. Raises UserError when it says that there is no such model, or not for this person."""
    from huggingface_hub import errors, hf_hub_url

    try:
        return answers(hf_hub_url(name, "config.json"))
    except errors.HfHubHTTPError as error:
        raise _readable(error, name, "config.json") from None


def _fetch_optional(name: str, file: str, revision: str, local: bool) -> Path | None:
    from huggingface_hub import errors

    try:
        return _download(name, file, revision, local)
    except errors.EntryNotFoundError:  # not in the repository, or not in the cache
        return None
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise _readable(error, name, file) from None


def _fetch(name: str, file: str, revision: str | None, local: bool) -> Path:
    from huggingface_hub import errors

    try:
        return _download(name, file, revision, local)
    except (errors.EntryNotFoundError, errors.HfHubHTTPError, OSError, ValueError) as error:
        raise _readable(error, name, file) from None


def _download(name: str, file: str, revision: str | None, local: bool) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, file, revision=revision, local_files_only=local))


def _readable(error: Exception, name: str, file: str) -> UserError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{name}: the hub gives {file} only to those who accepted the model's licence. Accept it on the model's "
            "page, log in with `hf auth login`, and run this again."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{name}: no such directory here{nearest(Path(name))} Nor is there such a model on the Hugging Face hub."
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return UserError(
            f"{name}: no such directory here{nearest(Path(name))} If it is a model of the hub: {file} is neither in "
            "the local cache nor to be had from the hub (no network, or HF_HUB_OFFLINE is set); connect once, or "
            f"download the model elsewhere (`hf download {name}`) and pass its directory."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return UserError(
            f"{name}: the model has no {file} on the hub. Only models in safetensors format are read; "
            "convert it with transformers (save_pretrained) and pass the directory."
        )
    return UserError(f"{name}: {file} cannot be fetched from the hub ({' '.join(str(error).split())[:200]}).")
