"""Compiled blocks compute what plain ones do, and leave nothing behind.

The compiler itself would take minutes here; with the backend `traced` everything is traced, cut and guarded as for a
GPU, and then run by torch's own kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from torch import Tensor

from nanogpt_edit.data.samples import Sample
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model import linear
from nanogpt_edit.model.compiled import compiled_blocks
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.ragged import packed_states
from nanogpt_edit.model.sites import capture
from nanogpt_edit.training import trainer as trainer_module
from nanogpt_edit.training.sft import sft
from nanogpt_edit.training.sft_config import SFTConfig

# torch's tracer looks at what it warns others of looking at.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
PROMPTS = [[1, 2, 3, 4, 5], [5, 6, 7], [9] * 9]


class Traced:
    """A backend that counts the pieces it is given, and compiles none."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        self.pieces = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        self.pieces += 1
        return graph.forward


@pytest.mark.slow
def test_gradients_and_texts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many kinds of calls there are: torch's own limit would end the test."""
    monkeypatch.setattr(linear, "LARGE_MATRIX", 0)
    monkeypatch.setattr(linear, "LARGE_LAYER", 0)
    strict = torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True)
    model = GPT(tiny_config("llama"), seed=0)

    def gradients(rows: int) -> list[Tensor]:
        lengths = torch.arange(3, 3 + rows)
        token_ids = torch.arange(rows * 20).view(rows, 20) % 50
        flat = torch.cat([row[:length] for row, length in zip(token_ids, lengths.tolist(), strict=True)])
        loss = model.logits(packed_states(model, flat, lengths)).logsumexp(dim=-1).sum()
        return list(torch.autograd.grad(loss, list(model.parameters())))

    def texts() -> list[tuple[int, ...]]:
        made = Engine(model).generate(PROMPTS, n=2, sampling=Sampling(max_new_tokens=6))
        return [completion.token_ids for completion in made]

    plain, written = gradients(4) + gradients(7), texts()
    with strict, compiled_blocks(model, backend=(traced := Traced())):
        compiled, written_compiled = gradients(4) + gradients(7), texts()
    assert traced.pieces
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert written_compiled == written


def test_afterwards_hooks_see_everything_again() -> None:
    model = GPT(tiny_config("gpt2"), seed=0)
    token_ids = torch.tensor([[1, 2, 3]])
    before = set(model.state_dict())
    with compiled_blocks(model, backend=(traced := Traced())):
        model(token_ids)
    pieces = traced.pieces
    assert pieces
    with capture(model, [("mlp_key", 0)]) as seen:
        model(token_ids)
    assert seen["mlp_key", 0].shape[:2] == (1, 3)
    assert traced.pieces == pieces
    assert set(model.state_dict()) == before


@pytest.mark.slow
def test_a_stage_trains_compiled_as_it_does_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = Traced()
    monkeypatch.setattr(trainer_module, "compiled_blocks", partial(compiled_blocks, backend=traced))
    samples = [Sample((5, 6, 7, 8, 9), (0, 0, 1, 1, 1)), Sample((1, 2, 3), (0, 1, 1))]
    models = []
    for compile in (False, True):
        assert not traced.pieces
        models.append(GPT(replace(tiny_config("gpt2"), n_layer=1), seed=0))
        config = SFTConfig(steps=2, batch_size=2, compile=compile, replay=0.0)
        folder = tmp_path / str(compile)
        sft(
            models[-1], samples, samples, config,
            replay=None, seed=0, state=folder / "state", log=folder / "log.jsonl",
        )  # fmt: skip
    assert traced.pieces
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
