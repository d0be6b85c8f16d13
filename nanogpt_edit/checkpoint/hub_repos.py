"""A model directory as a repository of the Hugging Face hub, and back.

What is pushed is one commit: it is there whole, or nothing of it is. Of a directory only what a model has goes there,
never what lies beside it by accident; of a repository only such files come back, weights as safetensors, and nothing is
ever unpickled.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanogpt_edit.checkpoint.hub import is_name
from nanogpt_edit.checkpoint.sources import open_source
from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import atomic_directory
from nanogpt_edit.common.terminal import counted, progress

OF_A_MODEL = re.compile(
    r"[\w-]+\.json|model(-\d+-of-\d+)?\.safetensors|patches/[\w.-]+\.safetensors|merges\.txt|[\w.-]+\.md"
    r"|(LICEN[CS]E|NOTICE|COPYING|[\w-]*USE_POLICY)[\w.-]*|(additional_chat_templates/)?[\w-]+\.jinja",
    re.ASCII | re.IGNORECASE,
)
OUTDATED = re.compile(r"(model.*|patches/.*)\.safetensors|model\.safetensors\.index\.json", re.ASCII)
"""Files of a repository that, left there, would be taken for parts of the model that is pushed over them."""
NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "huggingface_hub", "hf_xet")


def files_to_push(directory: Path) -> tuple[dict[str, int], list[str]]:
    """(bytes by name of the files that would be pushed, names of those that would not), each sorted by name.

    Raises UserError for what is no model directory, or is damaged.
    """
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        raise UserError(
            f"{directory}: an adapter, which only makes a model with its base; push the model into which it is merged "
            "(the folder beside it, or what ne.save writes of ne.load)."
        )
    if not directory.is_dir():
        raise UserError(f"{directory}: only a model directory can be pushed; ne.save writes one of any model.")
    open_source(directory)
    found = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    kept = {name: (directory / name).stat().st_size for name in found if OF_A_MODEL.fullmatch(name)}
    return kept, [name for name in found if name not in kept]


@checked
def push(directory: str | Path, repo: str, *, private: bool = True, update: bool = False) -> str:
    """Put a model directory into the repository `repo` of the hub, in one commit -> the address of its page.

    The repository is made; one that is there and holds something is only taken with `update`. Who may do so is known
    by the token that `hf auth login` has kept, or HF_TOKEN.
    Raises UserError where there is no token, the hub refuses or cannot be reached, and for what is no model directory.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    check_name(repo)
    directory = Path(directory)
    names, _ = files_to_push(directory)
    if get_token() is None:
        raise UserError("the hub asks who you are; log in with `hf auth login`, or set HF_TOKEN to one that may write.")
    api = HfApi()
    with _in_words(f"{repo}: the repository was not made"):
        made = api.create_repo(repo, private=private, exist_ok=True)
        there = set(api.list_repo_files(made.repo_id)) - {".gitattributes"}
    if there and not update:
        raise UserError(
            f"{made.repo_id} is on the hub already, with {len(there)} files ({sorted(there)[0]}, …); choose another "
            "name, or put this model in its place with --update."
        )
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=directory / name) for name in names]
    gone = [
        CommitOperationDelete(path_in_repo=name) for name in there if OUTDATED.fullmatch(name) and name not in names
    ]
    done = "nothing of the model is to be seen there; the same command tries again"
    with progress(f"pushing to {made.repo_id}"), _in_words(f"{made.repo_id}: {done}"):
        api.create_commit(made.repo_id, [*added, *gone], commit_message=f"{directory.resolve().name}, by nanogpt_edit")
    return str(made)


@checked
def pull(repo: str, out: str | Path, *, revision: str | None = None) -> Path:
    """Copy a model of the hub, with card and patches, into the folder `out`, whole or not at all.

    Files come through huggingface_hub's cache: a pull that was interrupted fetches only what is missing.
    Raises UserError where the folder is there, the hub refuses or cannot be reached, or what is there is no model that
    can be read.
    """
    from huggingface_hub import HfApi, hf_hub_download

    check_name(repo)
    out = Path(out)
    if out.exists():
        raise UserError(f"{out}: is there already; choose another folder.")
    with _in_words(f"{repo}: not fetched"):
        found = HfApi().model_info(repo, revision=revision)
    names = [each.rfilename for each in found.siblings or () if OF_A_MODEL.fullmatch(each.rfilename)]
    if "config.json" not in names:
        raise UserError(f"{repo}: no model that can be read, it has no config.json.")
    with atomic_directory(out) as part:
        for name in counted(names, f"fetching {repo}", unit="files"):
            with _in_words(f"{repo}: {name} was not fetched; the same command goes on with what is missing"):
                cached = hf_hub_download(repo, name, revision=found.sha)
            (part / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(cached, part / name)
        open_source(part)
    return out


def check_name(repo: str) -> None:
    """Raise UserError unless this is a name that the hub could have."""
    if not is_name(repo):
        raise UserError(
            f'"{repo}" is no name of a repository; one is OWNER/NAME, of letters, digits, "-", "_" and ".".'
        )


@contextmanager
def _in_words(what: str) -> Iterator[None]:
    """What the hub or the network says inside becomes a sentence that begins with `what`."""
    try:
        yield
    except Exception as error:
        found = next((each for each in _with_causes(error) if _is_of_the_network(each)), None)
        if found is None:
            raise
        raise UserError(f"{what} ({_reason(found)}).") from None


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised for: huggingface_hub's threads wrap theirs in a RuntimeError."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_of_the_network(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in NETWORK or isinstance(error, OSError | ValueError)


def _reason(error: BaseException) -> str:
    from huggingface_hub import errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return "the hub gives it only to those who accepted its licence: do so on its page, log in with hf auth login"
    known = {
        401: "401: the hub does not know the token, or gives this only to others; hf auth login takes a new one",
        403: "403: the token may not do this; it needs the right to write, and the name must be yours or your group's",
        404: "404: the hub has none of this name, or shows it to others only; hf auth login says who you are",
        413: "413: a file is too large for the hub",
        429: "429: too many requests; wait some minutes",
    }
    if status is not None:
        said = " ".join(str(error).split())[:160]
        return known.get(status, f"the hub answered {status}: {said}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    return f"the hub cannot be reached: {' '.join(str(error).split())[:160] or type(error).__name__}"
