"""One model trained by several processes: replicas whose gradients are added up, or one copy in shards.

A stage's loss calls the model in its own way (states at target positions, a prompt shared by its completions), and
PyTorch's engines see only what goes through one module's forward. So that module is a `LossModule`: its forward is
whatever loss it is given. DistributedDataParallel (Li et al. 2020) wraps it; `fully_shard` (FSDP2, after Zhao et al.
2023) divides each block's weights, and the rest, over the processes and gathers them while they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanogpt_edit.common import distributed
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.sizes import machine_bytes
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lora import Lora
from nanogpt_edit.model.size import activation_bytes
from nanogpt_edit.training.config import LoopConfig

Item = TypeVar("Item")

MOST_TOKENS = 16_384  # at once: more is no faster
ACTIVATION_BYTES = 2**31  # on a CPU; the same on most machines, and so are the bits of a run


class LossModule(nn.Module):
    """The model behind a forward that computes any loss of it."""

    def __init__(self, model: GPT, lora: Lora | None = None) -> None:
        super().__init__()
        self.model, self.lora = model, lora

    def forward(self, loss: Callable[[GPT], Tensor]) -> Tensor:
        return loss(self.model)


class Parallel:
    """How this process works with the others on one model. With a single process it is the model itself.

    With `shard` the weights of the model, and of a `lora` that is attached to it, become this process's part of them;
    an optimizer must be made after this. Raises UserError when there is nobody to share with.
    """

    def __init__(self, model: GPT, lora: Lora | None = None, *, shard: bool = False) -> None:
        self.model = self.gathered_model = model
        self.lora = lora
        self.loss_module: nn.Module = LossModule(model, lora)
        self.sharded = shard
        if shard and distributed.world_size() == 1:
            raise UserError(
                "shard divides a model over several processes and there is one; start with torchrun "
                "--nproc_per_node=2 (or more) -m nanogpt_edit …, or leave shard out."
            )
        if shard:
            from torch.distributed.device_mesh import init_device_mesh  # here, for they take a second
            from torch.distributed.fsdp import fully_shard

            # The engine counts on every process making the same passes, so generation needs a model of its own.
            with torch.device("meta"):
                self.gathered_model = GPT(model.config)
            for carried in ("tokenizer", "lineage", "kept"):
                setattr(self.gathered_model, carried, getattr(model, carried))
            mesh = init_device_mesh(model.device.type, (distributed.world_size(),))
            for block in model.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(self.loss_module, mesh=mesh)
        elif distributed.world_size() > 1:
            self.loss_module = DistributedDataParallel(self.loss_module, gradient_as_bucket_view=True)

    def backward(self, loss: Callable[[GPT, Item], Tensor], batches: Sequence[Item], *, dummy: Item) -> float:
        """Add the gradients of `loss(model, batch)`, summed over the batches of all processes -> that sum.

        Each process brings its own batches; a loss is divided by a count over the whole step, so that neither
        micro-batches nor processes change the gradient.

        The processes may hold different numbers of batches, or none. The engines count on all of them making the same
        passes, so one that has run out computes the loss of `dummy`, any small batch, and takes it times 0. For the
        same reason a loss goes through the blocks equally often whatever its batch.
        """
        passes = int(distributed.all_reduce_max([len(batches)])[0])
        total = 0.0
        for number in range(passes):
            with self._reduced(number == passes - 1):
                own = self._forward(loss, batches[number]) if number < len(batches) else self._forward(loss, dummy) * 0
                (own * distributed.world_size()).backward()  # both engines take the mean over processes
            total += own.item()
        return distributed.all_reduce_sum([total])[0]

    def _forward(self, loss: Callable[[GPT, Item], Tensor], batch: Item) -> Tensor:
        value: Tensor = self.loss_module(lambda model: loss(model, batch))
        return value

    @contextmanager
    def gathered(self) -> Iterator[GPT]:
        """The model to generate with, to validate and to save: with all its weights, also where they are in shards.

        It is the same object every time (`gathered_model`), in every process, and may be called as often as one likes;
        one made from shards has weights inside `with` only, and what LoRA has learned is merged into them.
        """
        if self.sharded:
            weights = {name: distributed.gathered(weight.detach()) for name, weight in self.model.named_parameters()}
            self.gathered_model.load_state_dict(weights, assign=True)
            if self.lora is not None:
                self.lora.merge(self.gathered_model)
        try:
            yield self.gathered_model
        finally:
            if self.sharded:
                self.gathered_model.to("meta")

    def _reduced(self, now: bool) -> AbstractContextManager[None]:
        """Replicas meet once per step, in its last pass; shards in every pass, or each would keep whole gradients."""
        if isinstance(self.loss_module, DistributedDataParallel) and not now:
            return self.loss_module.no_sync()
        return nullcontext()


def tokens_at_once(model: GPT, config: LoopConfig) -> int:
    """`micro_batch_tokens`, or as many as the memory there is has room for (see there)."""
    if config.micro_batch_tokens is not None:
        return config.micro_batch_tokens
    if model.device.type == "cuda":
        room = torch.cuda.get_device_properties(model.device).total_memory // 4
    else:
        room = min(ACTIVATION_BYTES, machine_bytes() // 8)
    per_token = activation_bytes(model.config, checkpointing=config.activation_checkpointing)
    return max(1, min(MOST_TOKENS, room // per_token))
