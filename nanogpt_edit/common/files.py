"""A file is complete or absent: everything this package writes goes through here.

New contents are written beside their destination, flushed to the disk, and renamed over it; a kill or a full disk
leaves the old file (or none). Logs are the exception: they grow line by line, and a torn last line is dropped by
the reader.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from nanogpt_edit.common.errors import UserError, reason_of, unreadable

MANY = 8  # names of a folder that an error lists
GZIP_LEVEL = 3  # half the time of the usual 6 for a few per cent more bytes
MOST_DIGITS = 400  # of a whole number: more than any float has before its point
WINDOWS = os.name == "nt"
CACHE_VARIABLE = "NANOGPT_EDIT_CACHE"
SOME_DIGIT = re.compile("[1-9]")
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON escapes the halves of surrogate pairs, whole pairs too


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed to `path`, on failure removed."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        _let_read(temporary, mode)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary directory; on success it replaces `path` whole, on failure nothing has changed."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            if file.is_file():
                _let_read(file, temporary.stat().st_mode & 0o666)
            _flush(file)
        _flush(temporary)
        if path.exists():
            os.rename(path, replaced)
        os.rename(temporary, path)
        _flush(path.parent)
    except BaseException:
        if replaced.exists() and not path.exists():
            os.rename(replaced, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def cache_folder() -> Path:
    """$NANOGPT_EDIT_CACHE, else nanogpt_edit in the user's cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanogpt_edit"


def make_folder(path: Path) -> None:
    """Make the folder and those above it where they are missing. Raises UserError where none can be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = reason_of(error)
        raise UserError(f"{path}: no folder can be made there ({reason}); choose another place.") from None


@contextmanager
def folder_to_fill(path: Path | None) -> Iterator[None]:
    """The folder is there inside (see `make_folder`); one made for a mistake, in which nothing came to be, goes."""
    made = path is not None and not path.exists()
    if path is not None:
        make_folder(path)
    try:
        yield
    except (UserError, OSError):
        if made and path is not None:
            with suppress(OSError):  # something has come to be
                path.rmdir()
        raise


def check_writable(path: Path) -> None:
    """Raise UserError where `atomic_file` could not write `path`: a folder is there, a name too long, no permission."""
    if path.is_dir():
        raise UserError(f"{path}: a folder, where a file is to be written; give another name.")
    make_folder(path.parent)
    probe = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no file can be written there ({reason_of(error)}); give another name.") from None


def nearest(path: Path) -> str:
    """The end of a sentence about a path that is not there: one that is and is spelt like it, or the last folder on
    the way that exists, and what it holds."""
    here, found = Path(path.anchor), True
    for part in path.parts[1:] if path.anchor else path.parts:
        names = sorted(entry.name for entry in here.iterdir()) if here.is_dir() else []
        exact = part if part in names or part == ".." else None
        likely = exact or next(iter(difflib.get_close_matches(part, names, n=1)), None)
        if likely is None:
            found = False
            break
        here /= likely
    if found:
        return f"; did you mean {here}?"
    if here == Path(path.anchor):
        return "."
    visible = [name for name in names if not name.startswith(".")]
    holds = ", ".join(visible[:MANY]) + (", …" if len(visible) > MANY else "")
    return f"; the nearest folder that exists is {here}, which holds {holds or 'nothing'}."


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically. Keys keep their order; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def parse_json(text: str) -> object:
    """The value of a JSON text.

    Raises ValueError with the reason for what is not JSON: NaN, a number no float can hold, a key that is there twice,
    half of a surrogate pair, and what is nested too deeply to be read.
    """
    try:
        value: object = STRICT_JSON.decode(text)
        if HALF_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which stands for no character") from None
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    if not math.isfinite(float(digits)):
        raise ValueError(f"{digits[:40]} is beyond what a number can be")
    return read_float(digits)


class Lost(ValueError):
    """A number that is written, and that no float can tell from 0."""


def read_float(digits: str) -> float:
    """The number that `digits` write. Raises ValueError for what writes none, and Lost."""
    value = float(digits)
    if value == 0 and SOME_DIGIT.search(digits.lower().partition("e")[0]):
        raise Lost(f"{digits[:40]} is nearer to zero than a number can be; write 0, or a larger one")
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f'"{twice[:40]}" is there twice in one object')
    return found


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


STRICT_JSON = json.JSONDecoder(
    parse_constant=_no_number, parse_float=_finite, parse_int=_whole, object_pairs_hook=_object
)


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object. Raises UserError naming the file when it is missing, damaged, or not an object."""
    try:
        value = parse_json(read_bytes(path).decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(
            f"{path}: not valid JSON ({error}). The file is damaged; remove it and make it again."
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object was expected, found {type(value).__name__}.")
    return value


def check_file(path: Path, remedy: str = "") -> None:
    """Raise UserError, with the `remedy`, where there is no file, or a folder in its place."""
    if not path.is_file():
        missing = IsADirectoryError() if path.is_dir() else FileNotFoundError()
        raise UserError(f"{unreadable(path, missing)} {remedy}".rstrip())


def read_bytes(path: Path) -> bytes:
    """The contents of a file. Raises UserError naming it when it cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(unreadable(path, error)) from None


def write_jsonl(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object per line, atomically; compressed when the name ends in .gz, the same bytes every time."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if path.suffix != ".gz":
        write_text(path, text)
        return
    with atomic_file(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), compresslevel=GZIP_LEVEL, mtime=0))


def append_jsonl(path: Path, record: Mapping[str, object]) -> None:
    """Append one line to a log; a torn last line left by a kill is cut off first."""
    make_folder(path.parent)
    with path.open("ab+") as log:
        end = log.tell()
        if end:
            log.seek(end - 1)
            if log.read(1) != b"\n":
                log.seek(0)
                log.truncate(log.read().rfind(b"\n") + 1)
        log.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


def read_jsonl(path: Path, *, log: bool = False) -> list[dict[str, object]]:
    """Read one JSON object per line, as `read_numbered_jsonl` does."""
    return [record for _, record in read_numbered_jsonl(path, log=log)]


def read_numbered_jsonl(path: Path, *, log: bool = False) -> list[tuple[int, dict[str, object]]]:
    """Read one JSON object per line -> (line number, object); blank lines are skipped.

    A name that ends in .gz is read compressed. Of a `log`, which grows line by line, a torn last line is dropped.
    Raises UserError naming file and line for anything else that is not an object.
    """
    contents = read_bytes(path)
    try:
        lines = (gzip.decompress(contents) if path.suffix == ".gz" else contents).split(b"\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: not a gzip file ({error}). The file is damaged; remove it and make it again."
        ) from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line.decode("utf-8-sig"))
        except ValueError as error:
            if log and number == len(lines):
                break
            what = "UTF-8 text" if isinstance(error, UnicodeDecodeError) else "valid JSON"
            raise UserError(f"{path}:{number}: not {what} ({error}).") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: a JSON object was expected, found {type(record).__name__}.")
        records.append((number, record))
    return records


def remove_files(paths: Iterable[Path]) -> int:
    """Remove them -> the bytes freed. Raises UserError for one that cannot be removed."""
    freed = 0
    for path in paths:
        size = path.stat().st_size
        try:
            path.unlink()
        except OSError as error:
            raise UserError(
                f"{path}: it cannot be removed ({reason_of(error)}); allow writing in its folder."
            ) from None
        freed += size
    return freed


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _let_read(path: Path, mode: int) -> None:
    """The permissions that a new file has here: safetensors lets nobody but its owner read what it writes."""
    with suppress(OSError):  # a file system without them
        os.chmod(path, mode)


def _flush(path: Path) -> None:
    if WINDOWS and path.is_dir():
        return  # a folder cannot be opened there; renaming is logged by the file system itself
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
