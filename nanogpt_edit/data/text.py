"""Plain text for pretraining, covariance and perplexity: files -> documents -> one row of tokens -> blocks.

Documents are joined by the end-of-text token (GPT-2's packing, Radford et al. 2019), so no token is spent on padding.
`token_blocks` cuts the row into blocks that overlap by exactly one token: each token but the first is the target of
one prediction, which is what perplexity wants. `random_blocks` draws blocks anywhere in the row, for pretraining.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.records import check_sound
from nanogpt_edit.common.terminal import counted
from nanogpt_edit.data import hub_datasets
from nanogpt_edit.data.rows import is_rows, read_rows, read_text_file, reason_of_json

if TYPE_CHECKING:
    from nanogpt_edit.model.tokenizer import Tokenizer

TEXT_SUFFIXES = (".txt", ".raw", ".md", ".txt.gz", ".raw.gz", ".md.gz")
END_OF_TEXT = "<|endoftext|>"
# WikiText marks an article " = Title = " and its sections " = = Title = = ".
ARTICLE_HEADING = re.compile(r"^ = [^=\n].*[^=\n] = ?$", re.MULTILINE)


def read_text(
    source: str | Path | Sequence[str | Path],
    *,
    split: str = "train",
    text_field: str = "text",
    limit: int | None = None,
) -> list[str]:
    """Documents of a file, a folder (its .txt, .raw, .md files in order of name), a hub data set, or a list of these.

    A file is one document, unless it is WikiText (one per article) or holds `<|endoftext|>` (one per part); plain or
    gzipped. Of a file of records (`rows.py`) and of the `split` of a hub data set ("owner/name" or
    "owner/name:configuration") each row's `text_field` is a document; WikiText's rows are joined and cut by article.
    `limit` keeps the first so many documents (and streams the hub).

    Raises UserError for a missing or unreadable source, and when there is no text in it.
    """
    if not isinstance(source, (str, Path)):
        documents = [document for one in source for document in read_text(one, split=split, text_field=text_field)]
        return documents[:limit]
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(TEXT_SUFFIXES))
        if not files:
            raise UserError(f"{path}: no text in this folder (looked for {', '.join(TEXT_SUFFIXES)} files).")
        documents = [document for file in files for document in _documents(read_text_file(file))]
    elif path.is_file():
        documents = _row_documents(path, text_field) if is_rows(path) else _documents(read_text_file(path))
    else:
        documents = _hub_documents(str(source), split=split, text_field=text_field, limit=limit)
    if not documents:
        raise UserError(f"{source}: there is no text in it.")
    return documents[:limit]


def pack(documents: Iterable[str], tokenizer: Tokenizer) -> Tensor:
    """All documents as one row of token ids, (n,) int64, an end-of-text token after each (where the family has one)."""
    row: list[int] = []
    for document in counted(list(documents), "tokenising", unit="documents"):
        row += tokenizer.encode(document)
        if tokenizer.eos_id is not None:
            row.append(tokenizer.eos_id)
    return torch.tensor(row, dtype=torch.int64)


def token_blocks(documents: Iterable[str], tokenizer: Tokenizer, *, block_size: int) -> Tensor:
    """(N, block_size + 1) int64: inputs are `blocks[:, :-1]`, targets `blocks[:, 1:]`, in the text's order.

    The last token of a block is the first of the next, so no target is counted twice; what is left at the end (fewer
    than `block_size` targets) is not used. Raises UserError when the text fills no block.
    """
    row = pack(documents, tokenizer)
    _require(row, block_size)
    return row.unfold(0, block_size + 1, block_size).contiguous()


def random_blocks(
    row: Tensor, *, block_size: int, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(inputs, targets), each (batch_size, block_size) int64: blocks of `row` (n,) at uniform places, with replacement.

    Raises UserError when `row` is shorter than a block and its last target.
    """
    _require(row, block_size)
    starts = torch.randint(len(row) - block_size, (batch_size, 1), generator=generator)  # (B, 1)
    blocks = row[starts + torch.arange(block_size + 1)]  # (B, T + 1)
    return blocks[:, :-1], blocks[:, 1:]


def _require(row: Tensor, block_size: int) -> None:
    if len(row) < block_size + 1:
        raise UserError(
            f"The text has {len(row):,} tokens, too few for one block of {block_size} and its last target; "
            f"give more text or a smaller block_size."
        )


def _documents(text: str) -> list[str]:
    starts = [match.start() for match in ARTICLE_HEADING.finditer(text)]
    if END_OF_TEXT in text:
        parts = text.split(END_OF_TEXT)
    elif starts:
        cuts = [0, *starts, len(text)]
        parts = [text[start:stop] for start, stop in pairwise(cuts)]
    else:
        parts = [text]
    return [part.strip() for part in parts if part.strip()]


def _row_documents(path: Path, text_field: str) -> list[str]:
    rows = []
    for number, row in read_rows(path, field=text_field):
        if isinstance(row, Exception):
            raise UserError(f"{path}:{number}: not valid JSON ({reason_of_json(row)}).")
        rows.append(row)
    return _texts(rows, str(path), text_field)


def _hub_documents(source: str, *, split: str, text_field: str, limit: int | None) -> list[str]:
    hub_datasets.check_name(source)
    return _texts(hub_datasets.read_rows(source, split=split, limit=limit), source, text_field)


def _texts(rows: Sequence[object], source: str, text_field: str) -> list[str]:
    """One document per row; WikiText's rows are lines, of which articles are made."""
    found = [row.get(text_field) if isinstance(row, Mapping) else None for row in rows]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise UserError(f'{source}: {len(found) - len(texts):,} rows have no text in field "{text_field}".')
    for text in texts:
        check_sound(text, f'{source}: field "{text_field}"')
    if any(ARTICLE_HEADING.match(text) for text in texts):
        return _documents("".join(texts))
    return [text.strip() for text in texts if text.strip()]
