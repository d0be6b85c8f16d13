"""Plain text for pretraining, covariance and perplexity: files -> documents -> one row of tokens -> blocks.

Documents are joined by the end-of-text token (GPT-2's packing, Radford et al. 2019), so no token is spent on padding.
`token_blocks` cuts the row into blocks that overlap by exactly one token: each token but the first is the target of
one prediction, which is what perplexity wants. `token_stream` notes where windows for training may begin: with a
document, so that the model also learns what stands at the start of a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.records import Answering, check_sound
from nanogpt_edit.common.terminal import counted
from nanogpt_edit.data import hub_datasets
from nanogpt_edit.data.rows import is_rows, read_rows, read_text_file, reason_of_json
from nanogpt_edit.model.tokenizer import Tokenizer

TEXT_SUFFIXES = (".txt", ".raw", ".md", ".txt.gz", ".raw.gz", ".md.gz")
TEXT_FIELD = "text"  # of a record that is a document
END_OF_TEXT = "<|endoftext|>"
# WikiText marks an article " = Title = " and its sections " = = Title = = ".
ARTICLE_HEADING = re.compile(r"^ = [^=\n].*[^=\n] = ?$", re.MULTILINE)


@dataclass(frozen=True)
class TokenStream(metaclass=Answering):
    """Documents as one row of token ids, and the places where a training window may begin."""

    token_ids: Tensor  # (tokens,) int64
    starts: Tensor  # (windows,) int64: the first token of each document, and every `context_tokens` inside long ones


def read_text(source: str | Path, *, split: str = "train") -> list[str]:
    """Documents of a file, a folder (its .txt, .raw, .md files in order of name), or a hub data set.

    A file is one document, unless it is WikiText (one per article) or holds `<|endoftext|>` (one per part); plain or
    gzipped. Of a file of records (`rows.py`) and of the `split` of a hub data set ("owner/name" or
    "owner/name:configuration") each row's "text" is a document; WikiText's rows are joined and cut by article.

    Raises UserError for a missing or unreadable source, and when there is no text in it.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(TEXT_SUFFIXES))
        if not files:
            raise UserError(f"{path}: no text in this folder (looked for {', '.join(TEXT_SUFFIXES)} files).")
        documents = [document for file in files for document in _documents(read_text_file(file))]
    elif path.is_file():
        documents = _row_documents(path) if is_rows(path) else _documents(read_text_file(path))
    else:
        documents = _hub_documents(str(source), split=split)
    if not documents:
        raise UserError(f"{source}: there is no text in it.")
    return documents


def pack(documents: Iterable[str | Sequence[int]], tokenizer: Tokenizer) -> tuple[Tensor, list[int]]:
    """All documents (texts, or token ids) as one row of token ids, (n,) int64, and where each begins.

    An end-of-text token stands after each, where the family has one.
    """
    row: list[int] = []
    begins: list[int] = []
    separator = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for document in counted(list(documents), "tokenising", unit="documents"):
        begins.append(len(row))
        row += tokenizer.encode(document) if isinstance(document, str) else document
        row += separator
    return torch.tensor(row, dtype=torch.int64), begins


def token_blocks(documents: Iterable[str], tokenizer: Tokenizer, *, block_size: int) -> Tensor:
    """(N, block_size + 1) int64: inputs are `blocks[:, :-1]`, targets `blocks[:, 1:]`, in the text's order.

    The last token of a block is the first of the next, so no target is counted twice; what is left at the end (fewer
    than `block_size` targets) is not used. Raises UserError when the text fills no block.
    """
    row, _ = pack(documents, tokenizer)
    if len(row) < block_size + 1:
        raise UserError(
            f"the text has {len(row):,} tokens, too few for one block of {block_size} and its last target; give more."
        )
    return row.unfold(0, block_size + 1, block_size).contiguous()


@checked
def token_stream(documents: Sequence[str], tokenizer: Tokenizer, *, context_tokens: int) -> TokenStream:
    """Tokenise `documents` and note where windows of `context_tokens` may begin.

    Raises UserError when there is no text, or less of it than one window.
    """
    if context_tokens < 1:
        raise UserError(f"is {context_tokens}; a window has at least 1.", field="context_tokens")
    row, begins = pack(documents, tokenizer)
    last = len(row) - context_tokens - 1
    starts = [
        start
        for begin, end in pairwise([*begins, len(row)])
        for start in range(begin, end, context_tokens)
        if start <= last
    ]
    if not starts:
        raise UserError(f"the text has {len(row)} tokens, less than one window of {context_tokens}; give more text.")
    return TokenStream(row, torch.tensor(starts))


def random_windows(stream: TokenStream, *, rows: int, context_tokens: int, seed: int, step: int) -> Tensor:
    """(rows, context_tokens + 1) token ids, windows chosen by (seed, step)."""
    choice = np.random.default_rng([seed, step]).integers(len(stream.starts), size=rows)
    columns = torch.arange(context_tokens + 1)
    return stream.token_ids[stream.starts[torch.from_numpy(choice)][:, None] + columns]


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


def _row_documents(path: Path) -> list[str]:
    rows = []
    for number, row in read_rows(path, fields=(TEXT_FIELD,)):
        if isinstance(row, Exception):
            raise UserError(f"{path}:{number}: not valid JSON ({reason_of_json(row)}).")
        rows.append(row)
    return _texts(rows, str(path))


def _hub_documents(source: str, *, split: str) -> list[str]:
    hub_datasets.check_name(source)
    return _texts(hub_datasets.read_rows(source, split=split), source)


def _texts(rows: Sequence[object], source: str) -> list[str]:
    """One document per row; WikiText's rows are lines, of which articles are made."""
    found = [row.get(TEXT_FIELD) if isinstance(row, Mapping) else None for row in rows]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise UserError(f'{source}: {len(found) - len(texts):,} rows have no text in field "{TEXT_FIELD}".')
    for text in texts:
        check_sound(text, f'{source}: field "{TEXT_FIELD}"')
    if any(ARTICLE_HEADING.match(text) for text in texts):
        return _documents("".join(texts))
    return [text.strip() for text in texts if text.strip()]
