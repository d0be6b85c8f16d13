"""A model whose every next token is known: it answers any question with one and the same worked solution.

Its blocks do nothing, and its head reads from each token the one that follows it, so that what it writes is known, in
either family, without training.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from conftest import tiny_config

from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer

ANSWER = "9"
COMPLETION = f"<think>5+3=8</think><answer>{ANSWER}</answer>"
AFTERWARDS = " so"  # what follows </answer> where nobody stops
WIDTH = 304  # a direction for each token


@torch.no_grad()
def writer(family: str, tokenizer: Tokenizer) -> GPT:
    """A model of `family` that continues a question, whatever it is, with `COMPLETION` and then `AFTERWARDS`."""
    config = tiny_config(family, vocab_size=tokenizer.vocab_size)
    model = GPT(replace(config, n_embd=WIDTH, tie_embeddings=False), seed=0).eval()
    assert model.head is not None
    for block in model.blocks:
        for matrix in (block.attn.out, block.mlp.down):
            matrix.weight.zero_()
    if model.positions is not None:
        model.positions.weight.zero_()
    model.embed.weight.copy_(torch.eye(tokenizer.vocab_size, WIDTH))
    chain = [*tokenizer.encode(COMPLETION), *tokenizer.encode(AFTERWARDS)]
    assert len(set(chain)) == len(chain)  # else one token would have two successors
    model.head.weight.zero_()
    model.head.weight[chain[0]] = 1.0
    model.head.weight[chain[0], chain] = 0.0  # what is not in the chain begins it
    for token, successor in pairwise(chain):
        model.head.weight[successor, token] = 1.0
    model.tokenizer = tokenizer
    return model
