"""Attention where products are made in bfloat16 on a CPU: in float32, forward and backward."""

from __future__ import annotations

import pytest
import torch

from nanogpt_edit.model.attention import attention


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_that_of_float32(kv_heads: int, given: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(kv_heads)
    q, k, v = (torch.randn(2, heads, 5, 8, generator=generator).to(given) for heads in (4, kv_heads, kv_heads))

    def found(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q = q.clone().requires_grad_()
        y = attention(q, k.to(q.dtype), v.to(q.dtype))
        return y, torch.autograd.grad(y.float().square().sum(), q)[0]

    expected, slope = found(q.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, own = found(q)
    assert (y.dtype, own.dtype) == (torch.float32, given)
    torch.testing.assert_close(y, expected, atol=0, rtol=0)
    torch.testing.assert_close(own, slope.to(given), atol=0, rtol=0)
