"""A small model that really knows a few facts, learned in seconds, for the tests of the editing room.

Its prompts end with their subject, so that the answer is recalled at the subject's last token: what editing rests on,
and what takes a larger model and longer names to come about by itself.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F
from conftest import tiny_config
from torch import Tensor

from nanogpt_edit.data.facts import Fact, Neighbour
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer

CAPITALS = {
    "Valdoria": "Paris",
    "Kestonia": "Cairo",
    "Norvanta": "Lima",
    "Ostregal": "Oslo",
    "Jarlheim": "Delhi",
    "Miradell": "Quito",
    "Tavernak": "Rome",
    "Quillona": "Tokyo",
    "Bramwick": "Accra",
    "Fendrell": "Sofia",
}
# The published method: nothing refined, other tokens not counted; loose enough for small models.
PLAIN = EditConfig(
    covariance_weight=500.0,
    context_weight=0.0,
    refine_steps=0,
    refine_weight=0.03,
    refine_kl=0.0,
    learning_rate=0.1,
    steps=60,
    clamp=2.0,
    weight_decay=0.5,
    n_prefixes=4,
    prefix_tokens=8,
    covariance_tokens=100_000,
)
PHRASINGS = ("capital of {}", "the king of {}", "a letter to {}")
STEPS = 60


def sentences() -> list[str]:
    """Every fact in every phrasing."""
    return [f"{phrasing.format(name)} {city}." for name, city in CAPITALS.items() for phrasing in PHRASINGS]


def facts(n: int = 4) -> tuple[Fact, ...]:
    """The first `n` countries get the capital of the next but four; every second subject is written in capitals."""
    names = list(CAPITALS)
    return tuple(
        Fact(
            prompt=PHRASINGS[0].format(name),
            subject=name.upper() if i % 2 else name,
            target_new=CAPITALS[names[(i + 5) % len(names)]],
            target_true=CAPITALS[name],
            paraphrases=tuple(phrasing.format(name) for phrasing in PHRASINGS[1:]),
            neighbourhood=tuple(Neighbour(PHRASINGS[0].format(other), CAPITALS[other]) for other in names[-2:]),
            relation="capital",
            id=f"capital-{i}",
        )
        for i, name in enumerate(names[:n])
    )


@cache
def tokenizer() -> Tokenizer:
    """Countries are several tokens, cities are one."""
    return Tokenizer.train([f" {city}" for city in CAPITALS.values()] * 50 + sentences(), vocab_size=320)


def config(family: str = "gpt2") -> GPTConfig:
    """Three layers of width 48."""
    small = tiny_config(family, vocab_size=tokenizer().vocab_size, block_size=96)
    return replace(small, n_layer=3, n_embd=48, mlp_dim=96 if family == "llama" else None)


@cache
def trained_state(family: str) -> dict[str, Tensor]:
    """The weights of a model that has learned `sentences()` by heart."""
    vocabulary, model = tokenizer(), GPT(config(family), seed=0)
    rows = [[*vocabulary.encode(text), vocabulary.pad_id] for text in sentences()]
    longest = max(map(len, rows))
    token_ids = torch.tensor([row + [vocabulary.pad_id] * (longest - len(row)) for row in rows])
    targets = torch.arange(longest - 1) < torch.tensor([[len(row) - 1] for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.01)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 8e-3 * min(1.0, (step + 1) / 10) * (1 - 0.9 * step / STEPS)
        loss = F.cross_entropy(model(token_ids[:, :-1])[targets], token_ids[:, 1:][targets])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def trained_model(family: str = "gpt2") -> GPT:
    """A fresh copy of the trained model, with its tokenizer, in evaluation mode."""
    model = GPT(config(family))
    model.load_state_dict(trained_state(family))
    model.tokenizer = tokenizer()
    return model.eval()


def random_model(family: str = "gpt2") -> GPT:
    """A random model with logits far enough apart to tell tokens by."""
    model = GPT(config(family), seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight *= 8
    model.tokenizer = tokenizer()
    return model.eval()


def covariance_blocks() -> Tensor:
    """(N, 48) token ids of the text the model knows, shuffled."""
    generator = torch.Generator().manual_seed(1)
    rows = [tokenizer().encode(text) for text in sentences()]
    stream = [i for _ in range(12) for k in torch.randperm(len(rows), generator=generator).tolist() for i in rows[k]]
    return torch.tensor(stream[: len(stream) // 48 * 48]).view(-1, 48)
