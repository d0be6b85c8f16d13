"""Weights in memory that another process maps. Here the other process is this one, with a mapping of its own."""

from __future__ import annotations

import copy
import gc
import os
from pathlib import Path

import pytest
import torch
from serving_run import small_model
from torch import nn

from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.playground.twin import twin
from nanogpt_edit.serving.shared_tensors import ALIGNMENT, Borrowed, SharedTensors

pytestmark = pytest.mark.skipif(
    not SharedTensors.possible(torch.device("cpu")), reason="this system has no memfd_create, or no /proc"
)


@pytest.fixture
def shared() -> SharedTensors:
    return SharedTensors()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def open_memories() -> int:
    links = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    return sum("memfd:nanogpt_edit" in link for link in links)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_parameters_stay_what_they_are(shared: SharedTensors) -> None:
    model = small_model()
    before, objects = weights(model), list(model.parameters())
    shared.take(model)
    places = [shared.place_of(each) for each in model.parameters()]
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), objects, strict=True))
    assert same(weights(model), before)
    assert all(place and place.offset % ALIGNMENT == 0 for place in places)
    assert len({place.memory for place in places if place}) == 1
    shared.take(model)
    assert [shared.place_of(each) for each in model.parameters()] == places


def test_what_one_changes_the_other_sees(shared: SharedTensors) -> None:
    model = small_model()
    shared.take(model)
    written = shared.dumps(("grpo", model))
    name, other = Borrowed().loads(written)
    assert name == "grpo" and isinstance(other, GPT)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids), other(ids))
    with torch.no_grad():
        model.blocks[0].get_parameter("mlp.down.weight").mul_(2)
        other.norm.get_parameter("weight")[0] = 7.0
    assert same(weights(model), weights(other))
    assert model.norm.get_parameter("weight")[0] == 7.0
    size = sum(each.nbytes for each in model.parameters())
    assert len(written) < size, "the weights themselves were pickled"


def test_a_parameter_of_two_modules_is_one_on_the_other_side(shared: SharedTensors) -> None:
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    two.weight = one.weight
    pair = nn.Sequential(one, two)
    shared.take(pair)
    first, second = Borrowed().loads(shared.dumps(pair))
    assert first.weight is second.weight and first.bias is not second.bias


def test_a_model_on_anothers_tensors_moves_only_its_own(shared: SharedTensors) -> None:
    model = small_model()
    shared.take(model)
    own = "blocks.1.mlp.down.weight"
    other = twin(model, own={own})
    shared.take(other)
    memories = {name: place.memory for name, each in other.named_parameters() if (place := shared.place_of(each))}
    base = shared.place_of(model.embed.weight)
    assert base is not None
    assert {name for name, memory in memories.items() if memory != base.memory} == {own}
    assert memories[own].size == -(-model.get_parameter(own).nbytes // ALIGNMENT) * ALIGNMENT
    found = Borrowed().loads(shared.dumps(other))
    assert same(weights(found), weights(other))


def test_a_copy_is_its_owners_alone(shared: SharedTensors) -> None:
    model = small_model()
    shared.take(model)
    other = copy.deepcopy(model)
    assert shared.place_of(other.embed.weight) is None
    with torch.no_grad():
        other.embed.weight.zero_()
    assert model.embed.weight.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_of_every_dtype(shared: SharedTensors, dtype: torch.dtype) -> None:
    mixed = nn.ParameterDict(
        {
            "a": nn.Parameter(torch.randn(3, 5).to(dtype)),
            "empty": nn.Parameter(torch.zeros(0, 4)),
            "b": nn.Parameter(torch.randn(7)),
            "turned": nn.Parameter(torch.randn(4, 6).T),
        }
    )
    before = weights(mixed)
    shared.take(mixed)
    assert same(weights(Borrowed().loads(shared.dumps(mixed))), before)


def test_memory_is_gone_when_both_have_let_go(shared: SharedTensors) -> None:
    gc.collect()  # what other tests have left
    before = open_memories()
    model, borrowed = small_model(), Borrowed()
    shared.take(model)
    written = shared.dumps(model)
    other = borrowed.loads(written)
    assert open_memories() > before
    kept = model.embed.weight.detach().clone()
    del model
    gc.collect()
    assert torch.equal(other.embed.weight, kept)
    del other
    gc.collect()
    assert open_memories() == before
    with pytest.raises(OSError):
        Borrowed().loads(written)
