"""`nanogpt-edit info MODEL`: what a model is, and what was done to it."""

from __future__ import annotations

from nanogpt_edit.checkpoint.checkpoint import fingerprint, load
from nanogpt_edit.commands.arguments import Info
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.show import show_json
from nanogpt_edit.common.errors import visible
from nanogpt_edit.common.reasoning import REASONING_TEMPLATE
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.fit import tokenizer_doubts
from nanogpt_edit.model.gpt import GPT

MEBIBYTE = 2**20


def info(arguments: list[str]) -> int:
    """The verb `info`."""
    chosen = parse(Info, arguments, verb="info")
    rows = describe(load(chosen.model))
    if chosen.json:
        show_json(dict(rows))
        return 0
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        print(f"{name:<{width}}{visible(value)}")
    return 0


def describe(model: GPT) -> list[tuple[str, str]]:
    """(name, value) lines about a model, in the order in which a person asks."""
    config = model.config
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    cache_bytes = 2 * config.n_layer * config.kv_heads * config.head_size * parameters[0].element_size()
    return [
        ("family", _family(config)),
        ("blocks", f"{config.n_layer} of width {config.n_embd}, MLP width {config.mlp_size}"),
        ("heads", f"{config.n_head} of width {config.head_size}{_groups(config)}"),
        ("block size", f"{config.block_size:,} tokens"),
        ("vocabulary", f"{config.vocab_size:,} rows, {'tied to' if config.tie_embeddings else 'apart from'} the head"),
        ("parameters", f"{count:,}"),
        ("memory", f"{size / MEBIBYTE:,.1f} MiB as {str(model.dtype).removeprefix('torch.')}"),
        ("cache", f"{cache_bytes:,} bytes per token and sequence"),
        ("weights", _finite(model)),
        ("tokenizer", _tokenizer(model)),
        ("chat template", _chat_template(model)),
        ("fingerprint", fingerprint(model)),
        ("lineage", " → ".join(map(str, model.lineage)) or "nothing recorded"),
    ]


def _family(config: GPTConfig) -> str:
    positions = "rotary" if config.positions == "rope" else config.positions
    return f"{config.model_type} ({config.norm}, {config.activation}, {positions} positions)"


def _groups(config: GPTConfig) -> str:
    return "" if config.kv_heads == config.n_head else f", sharing {config.kv_heads} key/value heads"


def _tokenizer(model: GPT) -> str:
    tokenizer = model.tokenizer
    if tokenizer is None:
        return "none: without one the model can neither read nor write; put its tokenizer.json beside the weights"
    ids = tokenizer.reasoning_ids
    doubts = "".join(f"; perhaps another model's: {doubt}" for doubt in tokenizer_doubts(model))
    return (
        f"{tokenizer.vocab_size:,} entries, <think> {ids[0]}, </think> {ids[1]}, <answer> {ids[2]}, </answer> {ids[3]}"
        f"{doubts}"
    )


def _chat_template(model: GPT) -> str:
    template = None if model.tokenizer is None else model.tokenizer.chat_template
    if template is None:
        return "none"
    return "the bare question, then <think>" if template == REASONING_TEMPLATE else "as it came with the model"


def _finite(model: GPT) -> str:
    """Whether every weight is a number."""
    broken = {name: int((~weight.isfinite()).sum()) for name, weight in model.named_parameters()}
    broken = {name: count for name, count in broken.items() if count}
    if not broken:
        return "all finite"
    first = next(iter(broken))
    return (
        f"{sum(broken.values()):,} are NaN or infinite, in {len(broken)} of {len(list(model.parameters()))} tensors "
        f"(first: {first}); nothing that this model writes or scores means anything"
    )
