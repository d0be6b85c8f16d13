"""Look at, or change, the activations at a model's named sites; only inside `with`.

A site is (name, layer). `resid_pre` enters a block, `attn_out` and `mlp_out` are what attention and MLP add to the
residual stream, `mlp_key` is the input of the MLP's second matrix, `resid_post` leaves the block. All are (B, T, D)
but `mlp_key`, which is (B, T, F).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.gpt import GPT

SITES = ("resid_pre", "attn_out", "mlp_key", "mlp_out", "resid_post")

SiteKey = tuple[str, int]


@contextmanager
def capture(model: GPT, sites: Iterable[SiteKey]) -> Iterator[dict[SiteKey, Tensor]]:
    """Yield a dict that holds, after each forward pass, the tensor seen at each of `sites`. Gradients flow."""
    seen: dict[SiteKey, Tensor] = {}

    def keep(key: SiteKey) -> Callable[[Tensor], Tensor]:
        def look(value: Tensor) -> Tensor:
            seen[key] = value
            return value

        return look

    with patch(model, {key: keep(key) for key in sites}):
        yield seen


@contextmanager
def patch(model: GPT, changes: Mapping[SiteKey, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While inside, each site's tensor is replaced by what its function returns for it."""
    with ExitStack() as hooks:
        for key, change in changes.items():
            handle = find_site(model, key).register_forward_hook(lambda _m, _x, out, change=change: change(out))
            hooks.callback(handle.remove)
        yield


def find_site(model: GPT, key: SiteKey) -> nn.Module:
    """The module of a site. Raises UserError for an unknown name or a layer the model does not have."""
    name, layer = key
    if name not in SITES:
        raise UserError(f'there is no site "{name}"; the sites are {", ".join(SITES)}.')
    if not 0 <= layer < model.config.n_layer:
        raise UserError(f"there is no layer {layer}; the model has layers 0 to {model.config.n_layer - 1}.")
    block = model.blocks[layer]
    return getattr(block.mlp if name == "mlp_key" else block, name)
