"""Where a token stands: learned positions that begin as sinusoids, and rotary ones, with Llama 3's stretching."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SINUSOID_AMPLITUDE = 0.03  # a root mean square of 0.02


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the low rotary frequencies (Grattafiori et al. 2024)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_block_size: int


def sinusoids(positions: int, width: int) -> Tensor:
    """(positions, width) sines and cosines of geometrically spaced frequencies (Vaswani et al. 2017, §3.5), as large as
    the token embeddings they are added to."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2) / width)  # (width / 2,)
    angles = torch.arange(positions)[:, None] * frequencies
    return SINUSOID_AMPLITUDE * torch.cat((angles.sin(), angles.cos()), dim=1)[:, :width]


def rotary_angles(
    position_ids: Tensor, *, head_size: int, theta: float, scaling: RopeScaling | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE (Su et al. 2021) for positions (T,) or (B, T), each (B or 1, 1, T, E).

    The sines of the first half, which a pair's second number is multiplied with, are negative.
    """
    frequencies = rotary_frequencies(head_size, theta, position_ids.device)  # (E/2,)
    if scaling is not None:
        frequencies = stretch_frequencies(frequencies, scaling)
    angles = position_ids.float()[..., None] * frequencies  # (B, T, E/2) or (T, E/2)
    angles = torch.cat((-angles, angles), dim=-1).reshape(-1, 1, position_ids.shape[-1], head_size)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotary_frequencies(head_size: int, theta: float, device: torch.device | None = None) -> Tensor:
    """By how much each pair of a head is turned from one position to the next, in radians: (E/2,), unstretched."""
    exponents = torch.arange(0, head_size, 2, device=device, dtype=torch.float32)
    return theta ** (-exponents / head_size)


def stretch_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3: slow frequencies are divided by `factor`, fast ones kept, those between are interpolated."""
    turns = scaling.original_block_size * frequencies / (2 * math.pi)  # full turns over the original context
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return frequencies * (smooth + (1 - smooth) / scaling.factor)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+E/2}) by its angle (see `rotary_angles`); x is (B, heads, T, E)."""
    return (x * cosine).add_(x.roll(x.shape[-1] // 2, dims=-1) * sine)
