"""Whether the tokenizer beside some weights is the one they were trained with, as far as can be told without a run."""

from __future__ import annotations

from nanogpt_edit.model.gpt import GPT

UNUSED_ROWS = 512  # more rows than this without a token, and more than a tenth, are not padding


def tokenizer_doubts(model: GPT) -> tuple[str, ...]:
    """What speaks against the tokenizer of `model`, one clause each; nothing for a model without one."""
    tokenizer, rows = model.tokenizer, model.config.vocab_size
    if tokenizer is None:
        return ()
    doubts = []
    if model.kept.vocabulary_sha256 not in (None, tokenizer.vocabulary_sha256):
        doubts.append("it is not the one that the model was saved with (lineage.json)")
    listed = model.kept.config.get("eos_token_id")
    ends = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if ends and tokenizer.eos_id is not None and tokenizer.eos_id not in ends:
        said = ", ".join(map(str, ends))
        doubts.append(f"it ends texts with id {tokenizer.eos_id}, config.json with {said}")
    unused = rows - tokenizer.vocab_size
    if unused > max(UNUSED_ROWS, rows // 10):
        doubts.append(f"{unused:,} of the embedding's {rows:,} rows have no token in it")
    return tuple(doubts)
