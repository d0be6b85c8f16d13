"""The records of a data file: JSON lines, a JSON array (bare, or wrapped in an object), Parquet; plain or gzipped.

What a file is, is seen from its first bytes, not from its name. What cannot be read is named for what it is: a pointer
of git-LFS where the data should be, a zip archive, a spreadsheet, a web page, text in another encoding.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import parse_json, read_bytes

ROW_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
MOST_UNPACKED = 256 << 20  # bytes of a gzip file, which may unpack to a thousand times its size

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
# How files begin that are not read, what they are, and what to do.
OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a pointer of git-LFS, not the data itself; fetch that with git lfs pull"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet, which is one); give the JSONL or Parquet that is in it"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet or document; save it as JSONL, or as Parquet"),
    (b"ARROW1", "an Arrow file; save it as Parquet"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it, or compress it with gzip"),
    (b"BZh", "compressed with bzip2; unpack it, or compress it with gzip"),
    (b"\xfd7zXZ", "compressed with xz; unpack it, or compress it with gzip"),
    (b"7z\xbc\xaf", "a 7z archive; give the file that is in it"),
    (b"SQLite format 3", "an SQLite database; export its table as JSONL"),
    (b"\x89HDF", "an HDF5 file; save it as JSONL, or as Parquet"),
    (b"%PDF", "a PDF; give its text as JSONL"),
    (b"\x93NUMPY", "a NumPy array; save it as JSONL, or as Parquet"),
    (b"\x80\x04", "a pickle, which is never opened; save it as JSONL, or as Parquet"),
    *(
        (tag, "a web page, not the data itself; download the file that it shows")
        for tag in (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML")
    ),
    (b"<?xml", "XML; save it as JSONL, or as Parquet"),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
)
WIDE = 64  # bytes in which UTF-16 without a mark is seen: every other one is zero


def is_rows(path: Path) -> bool:
    """Is it by its name a file of records?"""
    return path.name.endswith(ROW_SUFFIXES)


def files_of_split(folder: Path, split: str) -> list[Path]:
    """The file of a split: `train.jsonl`, `train.parquet`, …; or its parts as the hub names them; also in `data/`."""
    for place in (folder, folder / "data"):
        for suffix in ROW_SUFFIXES:
            whole = place / f"{split}{suffix}"
            found = [whole] if whole.is_file() else sorted(place.glob(f"{split}-*-of-*{suffix}"))
            if found:
                return found
    return []


def required_split(folder: Path, split: str) -> list[Path]:
    """The same. Raises UserError, naming what is there, where the folder has no such split."""
    if found := files_of_split(folder, split):
        return found
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{folder}: no {split}.jsonl in this folder (it holds {present}). Name the file itself, or give the folder one."
    )


def read_rows(path: Path, *, fields: Sequence[str]) -> Iterator[tuple[int, object]]:
    """(line or row number, record) of every record; an exception in its place where a line is no JSON.

    An object without any of `fields`, of which every record has one, and with a list of objects in it only wraps the
    records.
    Raises UserError naming the file where it is none of the forms above, and its line where that is known.
    """
    if path.suffix in (".csv", ".tsv"):
        raise UserError(f"{path}: a table of {path.suffix[1:]}; save it as JSONL, or as Parquet.")
    contents = read_bytes(path)
    if contents.startswith(PARQUET):
        yield from enumerate(_parquet(path), start=1)
        return
    text = _text(path, contents)
    opening = text.lstrip()[:1]
    if opening == "[" or (opening == "{" and not _is_lines(text, fields)):
        yield from _document(path, text, fields)
    else:
        yield from _lines(text)


def read_text_file(path: Path) -> str:
    """The text of a file, plain or gzipped. Raises UserError naming the file where it is not UTF-8 text."""
    return _text(path, read_bytes(path))


def _text(path: Path, contents: bytes) -> str:
    packed = contents.startswith(GZIP)
    if packed:
        contents = _unpacked(path)
    for beginning, what in OTHERS:
        if contents.startswith(beginning):
            raise UserError(f"{path}: {what}.")
    suffix = path.suffix.lower()
    if suffix == ".parquet" or (suffix == ".gz" and not packed):
        raise UserError(f"{path}: by its name a {suffix[1:]} file, and it is none; fetch it anew, or rename it.")
    head = contents[:WIDE]
    if head.count(0) * 3 > len(head):
        raise UserError(f"{path}: UTF-16 text, or no text at all; save it as UTF-8.")
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = contents.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: not UTF-8 text (the byte 0x{contents[error.start]:02x} at byte {error.start}); save it as "
            "UTF-8."
        ) from None


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            contents = file.read(MOST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: a damaged gzip file ({error}); fetch it anew.") from None
    if len(contents) > MOST_UNPACKED:
        raise UserError(f"{path}: unpacks to more than {MOST_UNPACKED >> 20} MiB; unpack it and give the plain file.")
    return contents


def _parquet(path: Path) -> list[dict[str, object]]:
    from pyarrow import ArrowException, parquet  # here, for it loads a library of many megabytes

    try:
        rows: list[dict[str, object]] = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: a Parquet file that cannot be read ({reason}); fetch it anew.") from None
    return rows


def _is_lines(text: str, fields: Sequence[str]) -> bool:
    """One object per line, not one object of many lines, nor one that wraps the records?"""
    first, _, rest = text.strip().partition("\n")
    try:
        return _wrapped(parse_json(first), fields) is None or bool(rest)
    except ValueError:
        return not first.rstrip().endswith(("{", "[", ","))


def _document(path: Path, text: str, fields: Sequence[str]) -> Iterator[tuple[int, object]]:
    try:
        value = parse_json(text)
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: not valid JSON ({reason_of_json(error)}).") from None
    if isinstance(value, list):
        return iter(enumerate(value, start=1))
    lists = _wrapped(value, fields)
    if lists is None:
        return iter([(1, value)])
    if len(lists) > 1:
        raise UserError(
            f"{path}: several lists of records in it ({', '.join(islice(lists, 8))}); put the one that is meant into a "
            "file of its own."
        )
    [rows] = lists.values()
    return iter(enumerate(rows, start=1))


def _wrapped(value: object, fields: Sequence[str]) -> dict[str, list[object]] | None:
    """The lists of objects in an object that is no record itself, by their names; None where there are none."""
    if not isinstance(value, dict) or any(field in value for field in fields):
        return None
    lists = {
        name: inner
        for name, inner in value.items()
        if isinstance(inner, list) and inner and all(isinstance(each, dict) for each in inner)
    }
    return lists or None


def _lines(text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                yield number, error


def reason_of_json(error: Exception) -> str:
    """Why a text is no JSON, in a few words."""
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
