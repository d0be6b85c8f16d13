"""Texts that begin alike go through the model as trees: what several of them begin with is there once.

In alphabetical order neighbours share most. As many of them as fit stand in one row, each token once for all texts that
have it behind the same beginning; a mask lets it see its own beginning alone, and its position is how long that is. So
a state is what it is in each of its texts by itself.

Shapes: B rows, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanogpt_edit.model.gpt import GPT

ROW_TOKENS = 160  # of a tree: attention looks at all pairs in it, which with so many costs a twentieth


@dataclass
class Tree:
    """Some texts in one row: `(5, 9)` and `(5, 7)` are the tokens 5, 9, 7, of which the last two stand behind the
    first."""

    token_ids: list[int] = field(default_factory=list)
    paths: dict[int, list[int]] = field(default_factory=dict)
    """The places of each text's tokens, by the text's number."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def add(self, number: int, text: Sequence[int], beginning: Sequence[int]) -> None:
        """One more text, whose first tokens are at `beginning`."""
        own = text[len(beginning) :]
        self.paths[number] = [*beginning, *range(len(self), len(self) + len(own))]
        self.token_ids += own

    def positions(self) -> Tensor:
        """(T,) how many tokens stand before each."""
        found = torch.zeros(len(self), dtype=torch.long)
        for path in self.paths.values():
            found[path] = torch.arange(len(path))
        return found

    def mask(self, width: int) -> Tensor:
        """(width, width) bool: where each token looks; padding at itself, for it must look somewhere."""
        sees = torch.eye(width, dtype=torch.bool)
        for path in self.paths.values():
            places = torch.tensor(path)
            sees[places[:, None], places] |= torch.ones(len(path), len(path), dtype=torch.bool).tril()
        return sees


def trees_of(texts: Sequence[tuple[int, ...]], *, row_tokens: int = ROW_TOKENS) -> list[Tree]:
    """All texts, in trees of at most so many tokens (or one text)."""
    trees: list[Tree] = []
    last: tuple[int, ...] = ()
    path: list[int] = []
    for number in sorted(range(len(texts)), key=lambda i: texts[i]):
        text = texts[number]
        shared = path[: shared_tokens(last, text)]
        if not trees or len(trees[-1]) + len(text) - len(shared) > row_tokens:
            trees.append(Tree())
            shared = []
        trees[-1].add(number, text, shared)
        last, path = text, trees[-1].paths[number]
    return trees


def shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with: (5, 9, 2) and (5, 9, 7, 2) -> 2."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def last_states(
    model: GPT, texts: Sequence[tuple[int, ...]], counts: Sequence[int], *, batch_tokens: int
) -> Iterator[tuple[list[int], Tensor]]:
    """The normalised states (M, D) of the last `counts` tokens of each text, some texts at a time, whose numbers come
    with them in the order of the states; at most `batch_tokens` padded tokens (or one tree) are run together."""
    waiting = sorted(trees_of(texts), key=len)
    while waiting:
        count = max(1, batch_tokens // len(waiting[-1]))
        batch, waiting = waiting[-count:], waiting[:-count]
        states, read = _states(model, batch), list[Tensor]()
        for row, tree in zip(states, batch, strict=True):
            read += [row[path[-counts[number] :]] for number, path in tree.paths.items()]
        yield [number for tree in batch for number in tree.paths], torch.cat(read)


def _states(model: GPT, trees: Sequence[Tree]) -> Tensor:
    """(B, T, D) of the trees' tokens, padded on the right."""
    token_ids = pad_sequence([torch.tensor(tree.token_ids) for tree in trees], batch_first=True)
    positions = pad_sequence([tree.positions() for tree in trees], batch_first=True)
    mask = torch.stack([tree.mask(token_ids.shape[1]) for tree in trees])[:, None]  # (B, 1, T, T)
    token_ids, positions, mask = (each.to(model.device) for each in (token_ids, positions, mask))
    return model.hidden(token_ids, position_ids=positions, attention_mask=mask)
