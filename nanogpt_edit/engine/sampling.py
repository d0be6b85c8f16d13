"""Logits and uniform numbers in, tokens and log-probabilities out.

Sampling is by inverse CDF: a token is the first one at which the cumulated probability passes the uniform number.
The uniform number of token t of sample s of prompt p is a hash of (seed, p, s, t) and of nothing else, so the text
does not depend on which other rows share the batch.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanogpt_edit.engine.sampling_config import RestrictedSampling, Sampling

LINE = 64  # columns; 32 to 128 are equally fast
GOLDEN = -7046029254386353131  # 2⁶⁴/φ as a signed 64-bit integer, SplitMix64's increment


def draw_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    `logits` (R, V), `uniforms` (R,) in [0, 1) -> token ids (R,) and their log-probabilities (R,) in nats, under the
    full softmax at this temperature (before top-k and top-p; at temperature 1 when greedy).
    """
    logits = logits.float()
    if isinstance(sampling, RestrictedSampling):
        logits = logits.clone()
        for token in sampling.banned_ids:  # one by one: a list of them would be copied to the GPU in a recorded step
            logits[:, token] = -torch.inf
    if sampling.temperature == 0:
        chosen = argmax(logits)
        return chosen.squeeze(-1), (logits.gather(-1, chosen).squeeze(-1) - logits.logsumexp(dim=-1))
    scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
    if (sampling.top_k is not None and sampling.top_k < scaled.shape[-1]) or sampling.top_p < 1:
        k = min(sampling.top_k or scaled.shape[-1], scaled.shape[-1])
        kept, kept_ids = scaled.topk(k, dim=-1)  # most probable first
        probabilities = kept.softmax(dim=-1)
        if sampling.top_p < 1:
            before = probabilities.cumsum(dim=-1) - probabilities
            probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
        chosen = kept_ids.gather(-1, invert_cdf(probabilities, uniforms))
    else:
        probabilities = scaled.softmax(dim=-1)
        chosen = invert_cdf(probabilities, uniforms)
        return chosen.squeeze(-1), probabilities.gather(-1, chosen).squeeze(-1).log()
    logprobs = scaled.gather(-1, chosen).squeeze(-1) - scaled.logsumexp(dim=-1)
    return chosen.squeeze(-1), logprobs


def argmax(logits: Tensor) -> Tensor:
    """(R, V) -> (R, 1), the first highest column: the highest of each line of columns, the best line, the best in it.

    torch's own goes through the columns one by one; the highest of a line is found by vectors. The last line overlaps
    the one before where V is no whole number of lines.
    """
    size = logits.shape[-1]
    if size < LINE:
        return logits.argmax(dim=-1, keepdim=True)
    whole = logits[:, : size // LINE * LINE].unflatten(-1, (-1, LINE)).amax(dim=-1)
    lines = torch.cat((whole, logits[:, -LINE:].amax(dim=-1, keepdim=True)), dim=-1)
    first = (lines.argmax(dim=-1, keepdim=True) * LINE).clamp_(max=size - LINE)
    columns = first + torch.arange(LINE, device=logits.device)
    return first + logits.gather(-1, columns).argmax(dim=-1, keepdim=True)


def invert_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """(R, V) weights and (R,) uniforms -> (R, 1) index of the first column whose cumulated weight exceeds u · total.

    A column of weight 0 is never chosen, even where u · total is rounded up to the total. A GPU adds in pieces, and its
    rounding can make the sum rise or fall at a column that adds nothing (pytorch/pytorch#21780): there it is made in
    float64, in which such a step is far smaller than any weight that can be drawn.
    """
    exact = torch.float64 if probabilities.device.type == "cuda" else probabilities.dtype
    cumulated = probabilities.cumsum(dim=-1, dtype=exact)
    total = cumulated[:, -1:].contiguous()
    chosen = torch.searchsorted(cumulated, uniforms[:, None].to(cumulated.dtype) * total, right=True)
    return torch.minimum(chosen, torch.searchsorted(cumulated, total))  # the column that completes the total


def stream_keys(seeds: Tensor | int, prompt_keys: Tensor, sample_indices: Tensor) -> Tensor:
    """One 64-bit key per row from (seed, prompt, sample), each int64 (R,); one seed may be all rows'."""
    key = mix(torch.zeros_like(prompt_keys) + seeds + GOLDEN)
    key = mix(key + prompt_keys * GOLDEN)
    return mix(key + sample_indices * GOLDEN + 1)


def uniforms_at(keys: Tensor, steps: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), float64 (R,), for token number `steps` (R,) of the rows with these keys."""
    return (mix(keys + steps * GOLDEN) >> 11 & (1 << 53) - 1).double() * 2.0**-53


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014) on int64; products wrap, shifts are logical."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -4658895280553007687
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -7723592293110705685
    return x ^ (x >> 31 & (1 << 33) - 1)
