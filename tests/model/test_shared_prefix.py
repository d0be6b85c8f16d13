"""Reading each prompt once gives the states and the gradients of reading it with every completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.ragged import completion_states

FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])

Completions = Sequence[Sequence[Sequence[int]]]


@cache
def bold(family: str) -> GPT:
    """A random model whose weights are large enough that every token before matters to the next."""
    model = GPT(replace(tiny_config(family, vocab_size=40, block_size=40), n_embd=16), seed=0).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() == 2 else 1)
    return model


def row_by_row(model: GPT, prompts: Sequence[Sequence[int]], completions: Completions) -> tuple[Tensor, Tensor]:
    """The simple path: every completion behind its own copy of the prompt, one row at a time."""
    states, targets = [], []
    for prompt, group in zip(prompts, completions, strict=True):
        for completion in group:
            row = torch.tensor([[*prompt, *completion]])
            states.append(model.hidden(row)[0, len(prompt) - 1 : -1])
            targets += completion
    return torch.cat(states), torch.tensor(targets)


def gradients(model: GPT, states: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Of a loss that weighs every token differently, with respect to every weight."""
    model.zero_grad()
    logprobs = model.logits(states).log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1)
    (logprobs * torch.linspace(-1, 2, len(targets))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def tokens_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 40, (length,), generator=generator).tolist() for length in lengths]


def assert_equal_paths(family: str, prompts: Sequence[Sequence[int]], completions: Completions) -> None:
    model = bold(family)
    states, targets = completion_states(model, prompts, completions)
    simple_states, simple_targets = row_by_row(model, prompts, completions)
    assert torch.equal(targets, simple_targets)
    torch.testing.assert_close(states, simple_states, atol=3e-5, rtol=1e-4)
    shared, simple = gradients(model, states, targets), gradients(model, simple_states, simple_targets)
    assert shared.keys() == simple.keys() == dict(model.named_parameters()).keys()
    for name, gradient in simple.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(shared[name], gradient, atol=1e-4 * scale, rtol=1e-3, msg=name)


@FAMILIES
def test_groups_of_ragged_rows(family: str) -> None:
    prompts = tokens_of(5, 1, 9)
    completions = [tokens_of(3, 8, 1, seed=1), tokens_of(2, 2, 12, seed=2), tokens_of(7, 1, 4, seed=3)]
    assert_equal_paths(family, prompts, completions)


@FAMILIES
def test_completions_of_one_token_need_the_prompt_alone(family: str) -> None:
    assert_equal_paths(family, tokens_of(4, 6), [tokens_of(1, 1, seed=1), tokens_of(1, 1, seed=2)])
    assert_equal_paths(family, tokens_of(1), [tokens_of(1, seed=1)])


@FAMILIES
def test_a_group_that_fills_the_block(family: str) -> None:
    assert_equal_paths(family, tokens_of(30, 2), [tokens_of(10, 3, seed=1), tokens_of(5, 38, seed=2)])


@FAMILIES
@settings(max_examples=8)
@given(
    prompt_lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    copies=st.integers(1, 4),
    data=st.data(),
)
def test_groups_of_any_shape(family: str, prompt_lengths: list[int], copies: int, data: st.DataObject) -> None:
    lengths = st.lists(st.integers(1, 9), min_size=copies, max_size=copies)
    completions = [tokens_of(*data.draw(lengths), seed=p) for p in range(len(prompt_lengths))]
    assert_equal_paths(family, tokens_of(*prompt_lengths), completions)


def test_a_prompt_gets_gradient_from_all_its_completions() -> None:
    # The prompt's token 39 occurs nowhere else: its embedding learns only through what the completions see of it.
    model = bold("llama")
    group = [[1, 2, 3], [4, 5, 6]]
    both = gradients(model, *completion_states(model, [[39, 0]], [group]))["embed.weight"][39]
    one = gradients(model, *completion_states(model, [[39, 0]], [group[:1]]))["embed.weight"][39]
    assert both.abs().max() > 0
    assert not torch.allclose(both, one)


def test_no_gradient_is_added_up_in_the_order_threads_come() -> None:
    # What x[index] sends back is added by all threads at once; where an index comes three times, the sum depends on
    # which of them is first, and so does every number of the run from there on.
    states, _ = completion_states(bold("gpt2"), tokens_of(3, 5), [tokens_of(2, 3, 4), tokens_of(4, 1, 2)])
    seen, waiting = set(), [states.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert "IndexSelectBackward0" in names
    assert "IndexBackward0" not in names
