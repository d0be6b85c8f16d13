"""Texts behind one another as one long row: all products but attention's are large ones, and little is padded.

What several texts begin with is in the row only once. In attention the row falls into groups: rows of nearly equal
length, with the keys and values of what comes before them.

Shapes: T tokens of the long row, B rows of a group, Q tokens of each, P tokens before them, H heads, K key/value heads,
E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.editing.prefix import FrozenPrefix
from nanogpt_edit.model.attention import attention

BUSY_TOKENS = 64  # a group of so many is closed when the next text is longer
SHARED_TOKENS = 4  # texts that begin with so many equal ones are looked at together,
WORTH_TOKENS = 64  # and share them if that saves so many tokens


@dataclass(frozen=True)
class Group:
    """B · Q tokens of the long row in attention."""

    shape: tuple[int, int]
    """(B, Q)"""
    shared: slice | None = None
    """The tokens of the long row that all these rows begin with."""
    before: FrozenPrefix | None = None
    """Or the recorded keys and values that come before each."""
    mask: Tensor | None = None
    """(B, 1, Q, P + Q) what each token may look at (None: all that is before it)."""

    @property
    def tokens(self) -> int:
        return self.shape[0] * self.shape[1]


class LongRow:
    """An `AttentionView`; `kept` holds the keys and values (K, T, E) of every layer that ran, if it `keeps` them."""

    def __init__(self, groups: Sequence[Group], *, keeps: bool = False) -> None:
        self.groups, self.keeps, self.length = groups, keeps, 0
        self.kept: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """q (1, H, T, E), keys and values (1, K, T, E) -> as q."""
        self.kept += [keys[0], values[0]] if self.keeps else []
        parts = [each.split([group.tokens for group in self.groups], dim=2) for each in (q, keys, values)]
        seen: list[Tensor] = []
        for group, *mine in zip(self.groups, *parts, strict=True):
            own_q, own_k, own_v = (each[0].unflatten(1, group.shape).transpose(0, 1) for each in mine)  # (B, H, Q, E)
            if group.shared is not None:
                own_k, own_v = (
                    torch.cat((every[:, :, group.shared].expand(len(own), -1, -1, -1), own), dim=2)
                    for every, own in ((keys, own_k), (values, own_v))
                )
            if group.before is not None:
                own_k, own_v = group.before.extend(layer, own_k, own_v)
            y = attention(own_q, own_k, own_v, mask=group.mask)
            seen.append(y.transpose(1, 2).flatten(0, 1))
        return torch.cat(seen).transpose(0, 1)[None]


@dataclass(frozen=True)
class Layout:
    """Where the tokens of some texts are in their long row."""

    token_ids: Tensor
    """(1, T)"""
    positions: Tensor
    """(1, T)"""
    groups: tuple[Group, ...]
    places: tuple[Tensor, ...]
    """Of each text's tokens, in order."""
    owners: tuple[tuple[int, int], ...]
    """Of each place: text and token."""

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], *, device: torch.device) -> Layout:
        """Of token ids; no text may be empty."""
        owners: list[tuple[int, int]] = []
        groups: list[Group] = []
        places: list[list[int]] = [[] for _ in texts]
        for family, shared in _families(texts):
            first = len(owners)
            if shared:
                owners += [(family[0], token) for token in range(shared)]
                groups.append(Group((1, shared)))
            for numbers in by_length([(len(texts[i]) - shared,) for i in family]):
                width = max(len(texts[family[k]]) - shared for k in numbers)
                groups.append(Group((len(numbers), width), shared=slice(first, first + shared) if shared else None))
                for i in (family[k] for k in numbers):
                    own = range(len(owners), len(owners) + len(texts[i]) - shared)
                    places[i] = [*range(first, first + shared), *own]
                    owners += [(i, min(shared + token, len(texts[i]) - 1)) for token in range(width)]
        return cls(
            token_ids=torch.tensor([[texts[i][token] for i, token in owners]], device=device),
            positions=torch.tensor([[token for _, token in owners]], device=device),
            groups=tuple(groups),
            places=tuple(torch.tensor(place, device=device) for place in places),
            owners=tuple(owners),
        )

    def cache(self, *, keeps: bool = False) -> LongRow:
        return LongRow(self.groups, keeps=keeps)

    def within(self, other: Layout, numbers: Sequence[int]) -> Tensor:
        """(T,) the places of these tokens in `other`, whose texts `numbers` begin with these texts."""
        places = [place.tolist() for place in other.places]
        return torch.tensor([places[numbers[i]][token] for i, token in self.owners], device=self.token_ids.device)


def by_length(lengths: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """The numbers of texts, in groups of nearly equal length (the first of each tuple, in tokens)."""
    groups: list[list[int]] = [[]]
    tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if tokens >= BUSY_TOKENS and lengths[i] > lengths[groups[-1][-1]]:
            groups, tokens = [*groups, []], 0
        groups[-1].append(i)
        tokens += lengths[i][0]
    return groups


def _families(texts: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """The texts' numbers, by what they begin with, and how many tokens they share; all that share little together."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, text in enumerate(texts):
        alike.setdefault(tuple(text[: min(SHARED_TOKENS, len(text) - 1)]), []).append(i)
    families: list[tuple[list[int], int]] = []
    others: list[int] = []
    for members in alike.values():
        shared = _shared_tokens([texts[i] for i in members])
        if shared * (len(members) - 1) >= WORTH_TOKENS:
            families.append((members, shared))
        else:
            others += members
    return [*families, (others, 0)] if others else families


def _shared_tokens(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens before the shortest one's last are the same in all of them."""
    room = min(map(len, texts)) - 1
    columns = zip(*(text[:room] for text in texts), strict=True)
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), room)
