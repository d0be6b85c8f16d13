"""Ordinary text where none is given: what the model itself writes when it begins a text with nothing to go on.

A model is a distribution over texts, and samples of it at temperature 1 are what it takes ordinary text to be; so the
keys of an edit can be protected with nothing downloaded, for a model whose training text nobody has.

What has been written is kept: a file for each model and length, named by a hash of all that the text depends on, and
checked against its own when it is read. A damaged file counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

from safetensors import SafetensorError

from nanogpt_edit.checkpoint.checked import read_checked, write_checked
from nanogpt_edit.checkpoint.weights import fingerprint
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import CACHE_VARIABLE, remove_files
from nanogpt_edit.common.terminal import progress, say
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import RestrictedSampling
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import END_OF_TEXT_NAMES, Tokenizer, tokenizer_of

OPENING = "The"  # of a text, for a model of which no token says that one begins
DOCUMENT_TOKENS = 64
AT_ONCE = 64  # documents: more are little faster on a CPU, and the first one would be long in coming
ENTRY = "texts"  # of a kept file's header
TOP_K = 50  # rare tokens lead a small model astray, and it goes on from there


def kept_own_text(model: GPT, *, tokens: int, seed: int, cache_dir: Path) -> list[str]:
    """`own_text`, from `cache_dir` where it is there; else it is written, and kept where that can be."""
    path = _path(model, tokens, seed, cache_dir)
    if (kept := _read(path)) is not None:
        return kept
    texts = own_text(model, tokens=tokens, seed=seed)
    try:
        write_checked(path, {}, text=json.dumps(texts), entry=ENTRY)
    except (OSError, SafetensorError, UserError) as error:
        say(f"{cache_dir}: the text cannot be kept there ({error}) {CACHE_VARIABLE} can name another folder.")
    return texts


def _path(model: GPT, tokens: int, seed: int, cache_dir: Path) -> Path:
    how = f"{DOCUMENT_TOKENS} {TOP_K} {OPENING}"
    what = f"{fingerprint(model)} {tokenizer_of(model).fingerprint} {tokens} {seed} {how}"
    return cache_dir / f"own-text-{hashlib.sha256(what.encode()).hexdigest()[:32]}.safetensors"


def _read(path: Path) -> list[str] | None:
    """The texts of a kept file; None where there is none, or a damaged one (said so)."""
    if not path.exists():
        return None
    try:
        _, text = read_checked(path, entry=ENTRY, remedy=" The text is written again.")
    except UserError as error:
        say(str(error))
        return None
    texts: list[str] = json.loads(text)
    return texts


def kept_texts(cache_dir: Path) -> dict[Path, int]:
    """Every kept file, and its size in bytes."""
    return {path: path.stat().st_size for path in sorted(cache_dir.glob("own-text-*.safetensors"))}


def own_text(model: GPT, *, tokens: int, seed: int) -> list[str]:
    """Documents of together about `tokens` tokens, sampled from the model (seeded)."""
    tokenizer = tokenizer_of(model)
    opening = opening_ids(tokenizer)
    length = min(DOCUMENT_TOKENS, model.config.block_size - len(opening))
    documents = math.ceil(tokens / length)
    sampling = RestrictedSampling(
        temperature=1.0,
        top_k=TOP_K,
        max_new_tokens=length,
        seed=seed,
        banned_ids=tokenizer.reasoning_ids,
    )
    engine = Engine(model, max_slots=AT_ONCE)
    stream = engine.stream([opening], n=documents, sampling=sampling, stop_ids=tokenizer.end_ids)
    with progress("writing text of its own", documents, unit="documents") as bar:
        written = sorted(bar.counted(stream), key=lambda each: each.sample_index)
    texts = (tokenizer.decode([i for i in each.token_ids if i not in tokenizer.end_ids]) for each in written)
    return [text for text in texts if text.strip()]


def clear_texts(cache_dir: Path) -> int:
    """Remove them; the bytes freed. Raises UserError for one that cannot be removed."""
    return remove_files(kept_texts(cache_dir))


def opening_ids(tokenizer: Tokenizer) -> list[int]:
    """What stands before a text: the token that ended the one before it, or else a first word."""
    ends = (name for name in END_OF_TEXT_NAMES if name in tokenizer.markup)
    return tokenizer.encode(next(ends, OPENING))
