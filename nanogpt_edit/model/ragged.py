"""Rows of different lengths go through the model behind one another as one row; attention alone sees them apart.

Nearly all of a model's arithmetic treats every token by itself, so padding is work for nothing there. Only attention
needs to know which tokens belong together. A plan (`Ragged`) cuts the one row into segments of neighbouring rows that
are padded in attention only, and says what stands before them: the rows of an earlier segment, as a group's prompt
stands before all its completions (computed once, with the gradient of running it with each of them), or keys and values
that a `Recorder` kept of an earlier run.

Shapes: B rows of a segment, T tokens of the longest, P of what stands before, N tokens of all rows together, H heads,
K key/value heads, E head width, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanogpt_edit.model.attention import AttentionView, attention, causal_mask
from nanogpt_edit.model.gpt import GPT

WASTED_PAIRS = 2**12  # of a token and padding it is compared with, before a further segment is cheaper
WASTED_PAIRS_ON_GPU = 2**24  # there a segment costs some thirty launches in every layer, and padding next to nothing

KeysValues = tuple[Tensor, Tensor]


class Segment:
    """Neighbouring rows of the long row; in attention they are padded on the right."""

    def __init__(self, lengths: Tensor, *, before: Shared | Recorded | None = None) -> None:
        """`lengths` (B,) may contain 0."""
        self.lengths, self.before = lengths, before
        self.is_token = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]  # (B, T)
        self.cell = self.is_token.flatten().nonzero().flatten()  # (N,)
        self.is_full = self.tokens == self.is_token.numel()
        ragged = before is not None and bool((before.lengths < before.width).any())
        self.mask = prefix_mask(before.lengths, before.width, self.is_token.shape[1]) if before and ragged else None

    @property
    def tokens(self) -> int:
        return len(self.cell)

    def spread(self, x: Tensor) -> Tensor:
        """(1, H, N, E) -> (B, H, T, E); padding is 0."""
        cells = x[0].transpose(0, 1)  # (N, H, E)
        if not self.is_full:
            cells = cells.new_zeros(self.is_token.numel(), *cells.shape[1:]).index_copy_(0, self.cell, cells)
        return cells.unflatten(0, self.is_token.shape).transpose(1, 2)

    def collect(self, x: Tensor) -> Tensor:
        """(B, H, T, E) -> (1, H, N, E)."""
        cells = x.transpose(1, 2).flatten(0, 1)  # (B T, H, E)
        return (cells if self.is_full else cells.index_select(0, self.cell)).transpose(0, 1)[None]

    def select(self, chosen: Tensor) -> Segment:
        """The rows where `chosen` (B,) is true, of a segment behind recorded keys and values."""
        assert isinstance(self.before, Recorded)
        return Segment(self.lengths[chosen], before=self.before.select(chosen))


@dataclass(frozen=True)
class Shared:
    """Each row of an earlier segment stands before `copies` rows of the later one."""

    segment: Segment
    copies: int

    @property
    def lengths(self) -> Tensor:
        return self.segment.lengths.repeat_interleave(self.copies)

    @property
    def width(self) -> int:
        return self.segment.is_token.shape[1]

    def keys_values(self, layer: int, seen: Mapping[Segment, KeysValues]) -> KeysValues:
        """(B, K, P, E) each, from what the segments before have in this layer."""
        keys, values = (each[:, None].expand(-1, self.copies, -1, -1, -1).flatten(0, 1) for each in seen[self.segment])
        return keys, values


@dataclass(frozen=True)
class Recorded:
    """Keys and values of an earlier run, in the layers from `first_layer` on, stand before the rows.

    By itself it is a view of B rows of equal length.
    """

    pairs: Tensor
    """(B, 2 · layers, K, P, E), in every layer keys, then values."""
    lengths: Tensor
    """(B,) how many of the P each row looks back at."""
    first_layer: int

    @classmethod
    def of(cls, rows: Sequence[Tensor], *, first_layer: int) -> Recorded:
        """`rows` (P, 2 · layers, K, E), each with a P of its own."""
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        pairs = pad_sequence(list(rows), batch_first=True).permute(0, 2, 3, 1, 4).contiguous()
        return cls(pairs, lengths, first_layer)

    @property
    def width(self) -> int:
        return self.pairs.shape[3]

    @property
    def length(self) -> int:
        return self.width

    def select(self, chosen: Tensor) -> Recorded:
        return Recorded(self.pairs[chosen], self.lengths[chosen], self.first_layer)

    def keys_values(self, layer: int, seen: Mapping[Segment, KeysValues] | None = None) -> KeysValues:
        """(B, K, P, E) each."""
        at = 2 * (layer - self.first_layer)
        return self.pairs[:, at], self.pairs[:, at + 1]

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return attention(q, *behind(self.keys_values(layer), (keys, values)), mask=mask)


class Ragged:
    """The plan: an `AttentionView` of rows that stand behind one another, (1, H, N, E); each token sees its own row."""

    length = 0

    def __init__(self, segments: Sequence[Segment], *, dropout: float = 0.0) -> None:
        """In the order of their tokens; a segment that others stand behind comes before them."""
        self.segments = [segment for segment in segments if segment.tokens]
        self.sizes = [segment.tokens for segment in self.segments]
        self.dropout = dropout

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        parts = zip(self.segments, *(each.split(self.sizes, dim=2) for each in (q, keys, values)), strict=True)
        own: dict[Segment, KeysValues] = {}
        found: list[Tensor] = []
        for segment, *part in parts:
            own_q, own_keys, own_values = (segment.spread(each) for each in part)
            own[segment] = seen = own_keys, own_values
            if segment.before is not None:
                seen = behind(segment.before.keys_values(layer, own), seen)
            found.append(segment.collect(attention(own_q, *seen, mask=segment.mask, dropout=self.dropout)))
        return torch.cat(found, dim=2)


class Recorder:
    """Keeps keys and values, (B, K, T, E) each, of every layer that runs; what is seen is the matter of `view`."""

    length = 0

    def __init__(self, view: AttentionView | None = None) -> None:
        self.view, self.pairs = view, list[Tensor]()

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        self.pairs += [keys, values]
        if self.view is None:
            return attention(q, keys, values, mask=mask)
        return self.view.attend(layer, q, keys, values, mask)

    def stacked(self) -> Tensor:
        """(B, 2 · layers, K, T, E)."""
        return torch.stack(self.pairs, dim=1)


def behind(before: KeysValues, own: KeysValues) -> KeysValues:
    """The rows' own keys and values with others before them, (B, K, P + T, E) each."""
    return torch.cat((before[0], own[0]), dim=2), torch.cat((before[1], own[1]), dim=2)


def prefix_mask(lengths: Tensor, prefix: int, new: int) -> Tensor:
    """(B, 1, T, P + T) bool: T = `new` tokens see the first `lengths` (B,) of P = `prefix`, and each other causally."""
    before = torch.arange(prefix, device=lengths.device) < lengths[:, None]  # (B, P)
    look_back = before[:, None, None].expand(-1, 1, new, -1)
    look_here = causal_mask(new, new, device=lengths.device).expand(len(lengths), 1, -1, -1)
    return torch.cat((look_back, look_here), dim=-1)


def like_lengths(lengths: Sequence[int], device: torch.device) -> list[slice]:
    """Which neighbours of like length to pad together: (60, 61, 200) -> the first two, then the third (on a CPU)."""
    allowed = WASTED_PAIRS if device.type == "cpu" else WASTED_PAIRS_ON_GPU
    starts, wasted = [0], 0
    for row in range(1, len(lengths)):
        wasted += (row - starts[-1]) * abs(lengths[row] ** 2 - lengths[row - 1] ** 2)
        if wasted > allowed:
            starts.append(row)
            wasted = 0
    return [slice(first, last) for first, last in zip(starts, [*starts[1:], len(lengths)], strict=True)]


def packed_states(model: GPT, token_ids: Tensor, lengths: Tensor, *, wanted: Tensor | None = None) -> Tensor:
    """The states (N, D) of rows of `lengths` (B,) tokens that stand behind one another in `token_ids` (N,).

    With `wanted` (N,) bool only of those it names, which spares the last block the others. Little is padded where
    neighbours are of like length.
    """
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)  # (N,)
    positions = torch.arange(len(token_ids), device=token_ids.device) - starts
    asked = None if wanted is None else wanted.nonzero().T  # (1, M)
    lengths = lengths[lengths > 0]
    plan = Ragged(
        [Segment(lengths[rows]) for rows in like_lengths(lengths.tolist(), token_ids.device)],
        dropout=model.config.dropout if model.training else 0.0,
    )
    return model.hidden(token_ids[None], view=plan, position_ids=positions[None], columns=asked)[0]


def completion_states(
    model: GPT, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]
) -> tuple[Tensor, Tensor]:
    """The state that predicts each completion token, and the token.

    `prompts[p]` and `completions[p][g]` are token ids, with the same number G of completions for each prompt ->
    states (N, D) and targets (N,), in the order of prompts, completions, tokens. With a prompt of P tokens and G
    completions of T, (P + G T) tokens go through the model instead of G (P + T).
    """
    device, copies = model.device, len(completions[0])
    answers = [(prompt, answer) for prompt, group in zip(prompts, completions, strict=True) for answer in group]
    prompt_lengths, lengths = (
        torch.tensor([len(row) for row in rows], device=device) for rows in (prompts, [answer for _, answer in answers])
    )
    asked = Segment(prompt_lengths)
    read = Segment(lengths - 1, before=Shared(asked, copies))  # a completion's last token predicts nothing
    token_ids = [token for row in (*prompts, *(answer[:-1] for _, answer in answers)) for token in row]
    positions = [place for prompt in prompts for place in range(len(prompt))]
    positions += [len(prompt) + place for prompt, answer in answers for place in range(len(answer) - 1)]
    states = model.hidden(
        torch.tensor([token_ids], device=device),
        view=Ragged([asked, read]),
        position_ids=torch.tensor([positions], device=device),
    )[0]
    # The first token of a completion is predicted at its prompt's end, every other one at the token before.
    ends, first, places = (prompt_lengths.cumsum(0) - 1).tolist(), asked.tokens, list[int]()
    for number, (_, answer) in enumerate(answers):
        places += [ends[number // copies], *range(first, first + len(answer) - 1)]
        first += len(answer) - 1
    # Not states[…]: a prompt's end is read once for each completion, and the gradients of reading with brackets are
    # added up by all threads at once, in the order they come; then the same run gives other numbers.
    targets = torch.tensor([token for _, answer in answers for token in answer], device=device)
    return states.index_select(0, torch.tensor(places, device=device)), targets


@dataclass(frozen=True)
class Layout:
    """Where the tokens of some texts are in their long row; what several begin with is there only once."""

    token_ids: Tensor
    """(1, N)"""
    positions: Tensor
    """(1, N)"""
    view: Ragged
    places: tuple[Tensor, ...]
    """Of each text's tokens, in order."""
    owners: tuple[tuple[int, int], ...]
    """Of each place: text and token."""

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], *, device: torch.device) -> Layout:
        """Of token ids; no text may be empty."""
        owners: list[tuple[int, int]] = []
        segments: list[Segment] = []
        places: list[list[int]] = [[] for _ in texts]
        for family, shared in families(texts):
            head, beginning = None, range(len(owners), len(owners) + shared)
            if shared:
                owners += [(family[0], token) for token in range(shared)]
                head = Segment(torch.tensor([shared], device=device))
                segments.append(head)
            rows = sorted(family, key=lambda i: len(texts[i]))
            lengths = [len(texts[i]) - shared for i in rows]
            for own in like_lengths(lengths, device):
                before = None if head is None else Shared(head, copies=len(rows[own]))
                segments.append(Segment(torch.tensor(lengths[own], device=device), before=before))
            for i, length in zip(rows, lengths, strict=True):
                places[i] = [*beginning, *range(len(owners), len(owners) + length)]
                owners += [(i, shared + token) for token in range(length)]
        return cls(
            token_ids=torch.tensor([[texts[i][token] for i, token in owners]], device=device),
            positions=torch.tensor([[token for _, token in owners]], device=device),
            view=Ragged(segments),
            places=tuple(torch.tensor(place, device=device) for place in places),
            owners=tuple(owners),
        )

    def within(self, other: Layout, numbers: Sequence[int]) -> Tensor:
        """(N,) the places of these tokens in `other`, whose texts `numbers` begin with these texts."""
        places = [place.tolist() for place in other.places]
        return torch.tensor([places[numbers[i]][token] for i, token in self.owners], device=self.token_ids.device)


SHARED_TOKENS = 4  # texts that begin with so many equal ones are looked at together,
WORTH_TOKENS = 64  # and share them if that saves so many tokens


def families(texts: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """The texts' numbers, by what they begin with, and how many tokens they share; all that share little together."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, text in enumerate(texts):
        alike.setdefault(tuple(text[: min(SHARED_TOKENS, len(text) - 1)]), []).append(i)
    found: list[tuple[list[int], int]] = []
    others: list[int] = []
    for members in alike.values():
        shared = shared_tokens([texts[i] for i in members])
        if shared * (len(members) - 1) >= WORTH_TOKENS:
            found.append((members, shared))
        else:
            others += members
    return [*found, (others, 0)] if others else found


def shared_tokens(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens before the shortest one's last are the same in all of them."""
    room = min(map(len, texts)) - 1
    columns = zip(*(text[:room] for text in texts), strict=True)
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), room)
