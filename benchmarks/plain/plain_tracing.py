"""Causal tracing as the published implementation does it (Meng et al. 2022): one restored state at a time, for each a
pass through the whole model. What `edit_speed.py` measures against, and the slow twin that the tests hold the package
to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.sites import SiteKey, patch


@torch.no_grad()
def trace(
    model: GPT, token_ids: Sequence[int], subject: slice, target: int, noise: Tensor, site: str, windows: list[range]
) -> Tensor:
    """Restored p(target) (T, L): per state one pass of the clean row and every corrupted one through the whole model.

    `noise` (draws, subject tokens, D); `windows` are the layers restored together, one window per layer.
    """
    rows = torch.tensor([token_ids]).expand(len(noise) + 1, -1)
    found = torch.zeros(len(token_ids), len(windows))

    def corrupt(x: Tensor) -> Tensor:
        x = x.clone()
        x[1:, subject] += noise
        return x

    def restore(token: int) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            x = x.clone()
            x[1:, token] = x[0, token]
            return x

        return change

    for token in range(len(token_ids)):
        for layer, window in enumerate(windows):
            changes: dict[SiteKey, Callable[[Tensor], Tensor]] = {(site, each): restore(token) for each in window}
            with patch(model, {("resid_pre", 0): corrupt}), patch(model, changes):
                logits = model(rows)
            found[token, layer] = logits[1:, -1].softmax(-1)[:, target].mean()
    return found
