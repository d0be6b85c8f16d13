"""The blocks through `torch.compile`, as long as a `with` lasts.

What surrounds attention (norms, products, activations, sums) becomes a few fused kernels. What looks at a cache, at
packed rows or at shared prompts stays as it is: its shapes and its book-keeping change from call to call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from nanogpt_edit.model.block import Attention, look
from nanogpt_edit.model.gpt import GPT

KINDS_OF_CALLS = 64  # of a block; torch gives up compiling at its eighth, which GRPO after SFT has


@contextmanager
def compiled_blocks(model: GPT, *, backend: str | Callable[..., object] = "inductor") -> Iterator[None]:
    """Inside, the blocks of `model` run compiled, in training and in sampling; hooks on its sites see nothing.

    Each kind of call (with a gradient, without, one token, many) is compiled when it first comes, once for all blocks.
    """
    from torch._dynamo import config  # here, for it takes a second

    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    apart = torch.compiler.disable(look)
    for attention in attentions:
        attention.look = apart
    for block in model.blocks:
        block.compile(dynamic=True, backend=backend)
    try:
        with config.patch(recompile_limit=KINDS_OF_CALLS):
            yield
    finally:
        for block in model.blocks:
            block._compiled_call_impl = None
        for attention in attentions:
            attention.look = look
