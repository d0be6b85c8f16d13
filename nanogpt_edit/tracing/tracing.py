"""Causal tracing: where in the network a fact is recalled (Meng et al. 2022, section 2).

Three kinds of runs. Clean: the prompt as it is. Corrupted: noise of three standard deviations of the embeddings is
added to the subject's tokens, over several seeded draws. Restored: the corrupted run again, but one token's state at
one layer is set back to its clean value (`resid_post`), or its MLP or attention output is, over a window of layers
(`mlp_out`, `attn_out`). The indirect effect of a state is how much of p(target) that brings back.

Difference from the authors' code: the whole grid of (token, layer, site) is batched. A restored run equals the
corrupted one below its layer and before its token, so it enters the sweep through the blocks at its layer and reads
the keys and values of the tokens before from the corrupted run. Runs of all facts, draws, layers and sites in which
equally many tokens are left share one sweep.

Shapes: F facts, N draws, T tokens, r tokens left (from the restored one on), L layers, D model width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.sizes import check_fits
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.data.facts import Fact, locate_subject
from nanogpt_edit.editing.contexts import pad_rows
from nanogpt_edit.evaluation.targets import check_length, join, target_ids
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.ragged import Recorded, Recorder, prefix_mask
from nanogpt_edit.model.sites import SiteKey, capture, patch
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.tracing.config import Site, TraceConfig
from nanogpt_edit.tracing.records import TraceExample

CHUNK_ROWS = 4096  # restored runs in one sweep; bounds memory


@dataclass(frozen=True)
class Traced:
    """One fact's grid."""

    tokens: tuple[str, ...]
    subject_first: int
    subject_last: int
    target: str
    """The token whose probability is followed: the target's first."""
    clean_p: float
    corrupted_p: float
    """Mean over draws."""
    effect: Mapping[Site, Tensor]
    """(T, L) restored p − corrupted p, mean over draws; exactly 0 before the subject."""

    @property
    def total_effect(self) -> float:
        """What the corruption costs."""
        return self.clean_p - self.corrupted_p

    def as_example(self) -> TraceExample:
        """The same as it is kept and drawn."""
        return TraceExample(
            tokens=self.tokens,
            subject_tokens=tuple(range(self.subject_first, self.subject_last + 1)),
            effect={site: tuple(map(tuple, grid.tolist())) for site, grid in self.effect.items()},
        )


def trace_facts(model: GPT, facts: Sequence[Fact], config: TraceConfig | None = None) -> tuple[Traced, ...]:
    """The grid of every fact, for the probability of its `target_true`. Raises UserError where a subject is not found.

    Use facts that the model recalls: where the clean probability is low there is nothing to restore.
    """
    config = config or TraceConfig()
    _check_draws(model, facts, config)
    cells = config.draws * len(config.sites) * model.config.n_layer
    size = max(1, CHUNK_ROWS // cells)
    traced: list[Traced] = []
    was_training = model.training
    model.eval()
    try:
        with progress("tracing", len(facts), "facts") as bar, torch.no_grad():
            for first in range(0, len(facts), size):
                traced += Tracer(model, facts[first : first + size], config).trace()
                bar.update(len(traced))
    finally:
        model.train(was_training)
    return tuple(traced)


def _check_draws(model: GPT, facts: Sequence[Fact], config: TraceConfig) -> None:
    """Raise UserError when the runs of one fact's draws are more than the machine can hold."""
    sizes, tokens = model.config, max((len(tokenizer_of(model).encode(fact.prompt)) for fact in facts), default=0)
    states = sizes.n_layer * (3 + 4 * len(config.sites))  # corrupted ones, their keys and values, the restored runs'
    needed = config.draws * tokens * sizes.n_embd * states * model.embed.weight.element_size()
    check_fits(f"trace.draws = {config.draws}", needed, remedy="8 to 32 draws are enough")


def trace(
    model: GPT, prompt: str, subject: str, target: str | None = None, config: TraceConfig | None = None
) -> Traced:
    """The grid of one prompt; `target` defaults to the token the model itself says next."""
    if not prompt.strip() or not subject.strip():
        raise UserError("the prompt and the subject cannot be empty; give the text and what it is about.")
    if target is None:
        tokenizer = tokenizer_of(model)
        token_ids = torch.tensor([tokenizer.encode(prompt.rstrip())], device=model.device)
        check_length(prompt, token_ids.shape[1], model)
        with torch.no_grad():
            target = tokenizer.decode([int(model(token_ids)[0, -1, : tokenizer.vocab_size].argmax())])
    fact = Fact(prompt=prompt, subject=subject, target_new=target, target_true=target)
    return trace_facts(model, [fact], config)[0]


class Tracer:
    """Some facts' clean and corrupted runs, and sweeps of restored runs over them.

    `noise` (F, N, T, D) is what was added, `targets` the token followed for each fact.
    """

    def __init__(self, model: GPT, facts: Sequence[Fact], config: TraceConfig) -> None:
        self.model, self.config = model, config
        self.outputs = [site for site in config.sites if site != "resid_post"]
        tokenizer, device, draws = tokenizer_of(model), model.device, config.draws
        found = [locate_subject(join(f.prompt, f.target_true)[0], f.subject, tokenizer) for f in facts]
        for fact, place in zip(facts, found, strict=True):
            check_length(fact.prompt, len(place.token_ids), model)
        self.first, self.last = [place.first for place in found], [place.last for place in found]
        self.rows = [place.token_ids for place in found]
        self.targets = [target_ids(f.prompt, f.target_true, tokenizer)[0] for f in facts]
        self.lengths = torch.tensor([len(row) for row in self.rows], device=device)
        token_ids = pad_rows(self.rows, pad_id=tokenizer.pad_id, device=device)  # (F, T)

        layers = range(model.config.n_layer)
        with capture(model, [(site, layer) for site in config.sites for layer in layers]) as seen:
            embedded = model.embed_tokens(token_ids)  # (F, T, D)
            clean = model.run_blocks(embedded)
        self.clean = {
            site: torch.stack([seen[site, layer] for layer in layers], dim=1) for site in config.sites
        }  # (F, L, T, D)
        everyone, ends = torch.arange(len(facts), device=device), self.lengths - 1
        self.clean_p = self._target_p(everyone, clean[everyone, ends][:, None])[:, 0]  # (F,)

        self.noise = self._noise(embedded)  # (F, N, T, D)
        noisy = embedded[:, None] + self.noise
        recorder = Recorder()
        with capture(model, [("resid_post", layer) for layer in layers]) as seen:
            corrupted = model.run_blocks(noisy.flatten(0, 1), view=recorder)
        states = [noisy.flatten(0, 1), *(seen["resid_post", layer] for layer in layers)]
        self.entering = [state.unflatten(0, (len(facts), draws)) for state in states]  # L + 1 of (F, N, T, D)
        self.recorded = recorder.stacked().unflatten(0, (len(facts), draws))
        last = corrupted.unflatten(0, (len(facts), draws))[everyone, :, ends]  # (F, N, D)
        self.corrupted_p = self._target_p(everyone, last).mean(1)  # (F,)

    def _noise(self, embedded: Tensor) -> Tensor:
        """(F, N, T, D), nothing but at the subjects; each fact's depends on the seed and its own tokens only."""
        spread = self.config.noise * float(self.model.embed.weight.detach().float().std())
        noise = torch.zeros(embedded.shape[0], self.config.draws, *embedded.shape[1:])
        for fact, row in enumerate(self.rows):
            digest = hashlib.sha256(repr((self.config.seed, row)).encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            subject = slice(self.first[fact], self.last[fact] + 1)
            shape = noise[fact, :, subject].shape
            noise[fact, :, subject] = spread * torch.randn(shape, generator=generator)
        return noise.to(embedded)

    def _target_p(self, facts: Tensor, states: Tensor) -> Tensor:
        """(F', M, D) states of last tokens -> (F', M) probability of each fact's target."""
        probabilities = self.model.logits(self.model.final(states)).float().softmax(-1)
        wanted = torch.tensor(self.targets, device=states.device)[facts][:, None, None]
        return probabilities.gather(-1, wanted.expand(-1, states.shape[1], 1)).squeeze(-1)

    def trace(self) -> list[Traced]:
        n_layer, tokenizer = self.model.config.n_layer, tokenizer_of(self.model)
        sites = self.config.sites
        effect = {site: torch.zeros(len(self.rows), int(self.lengths.max()), n_layer) for site in sites}
        for left in range(1, int(self.lengths.max()) + 1):
            facts = [f for f in range(len(self.rows)) if self.first[f] <= len(self.rows[f]) - left]
            if not facts:
                continue
            at = self.lengths[facts] - left
            for (site, layer), p in self._sweep(torch.tensor(facts, device=at.device), at, left).items():
                effect[site][facts, at.cpu(), layer] = (p - self.corrupted_p[facts]).cpu()
        return [
            Traced(
                tokens=tuple(tokenizer.token_text(i) for i in row),
                subject_first=self.first[f],
                subject_last=self.last[f],
                target=tokenizer.token_text(self.targets[f]),
                clean_p=float(self.clean_p[f]),
                corrupted_p=float(self.corrupted_p[f]),
                effect={site: effect[site][f, : len(row)].clone() for site in sites},
            )
            for f, row in enumerate(self.rows)
        ]

    def _sweep(self, facts: Tensor, at: Tensor, left: int) -> dict[tuple[Site, int], Tensor]:
        """p(target) (F',) of every (site, layer) restored at token `at` (F',), where `left` tokens are left."""
        model, n_layer, draws = self.model, self.model.config.n_layer, self.config.draws
        columns = at[:, None] + torch.arange(left, device=at.device)  # (F', r)
        positions = columns.repeat_interleave(draws, 0)  # (F'N, r)
        prefix = int(at.max())
        seen = at.repeat_interleave(draws)  # (F'N,) of what stands before
        mask = prefix_mask(seen, prefix, left)
        recorded = self.recorded[facts].flatten(0, 1)[..., :prefix, :]  # (F'N, 2L, K, P, E)
        runs: list[tuple[Site, int]] = []  # one group of F'N rows each, in the order they joined
        x = torch.empty(0, left, model.config.n_embd, device=at.device, dtype=model.dtype)
        for layer in range(n_layer):
            joining = [(s, c) for s in self.outputs for c in range(n_layer) if self._window(c).start == layer]
            runs += joining
            if joining:
                x = torch.cat((x, self._corrupted(layer, facts, columns).repeat(len(joining), 1, 1)))
            # In the last block only the last token is still of interest, and nothing restored before it reaches it.
            final = layer == n_layer - 1 and left > 1
            if runs:
                times = len(runs)
                with nullcontext() if final else self._restoring(runs, layer, facts, at):
                    x = model.run_blocks(
                        x,
                        start=layer,
                        stop=layer + 1,
                        view=Recorded(
                            recorded[:, 2 * layer : 2 * layer + 2].repeat(times, 1, 1, 1, 1), seen.repeat(times), layer
                        ),
                        position_ids=positions.repeat(times, 1),
                        attention_mask=mask.repeat(times, 1, 1, 1),
                        columns=torch.full((len(x), 1), left - 1, device=at.device) if final else None,
                    )
            if "resid_post" in self.clean:
                restored = self._corrupted(layer + 1, facts, columns)
                restored[:, 0] = self._clean_at("resid_post", layer, facts, at)
                x, runs = torch.cat((x, restored[:, -x.shape[1] :])), [*runs, ("resid_post", layer)]
        last = x[:, -1].view(len(runs), len(facts), draws, -1).transpose(0, 1)  # (F', runs, N, D)
        p = self._target_p(facts, last.flatten(1, 2)).view(len(facts), len(runs), draws).mean(-1)
        return {run: p[:, index] for index, run in enumerate(runs)}

    def _window(self, layer: int) -> range:
        return self.config.layers_around(layer, self.model.config.n_layer)

    def _corrupted(self, layer: int, facts: Tensor, columns: Tensor) -> Tensor:
        """(F'N, r, D) corrupted states entering block `layer`, from the restored token on."""
        chosen = self.entering[layer][facts]  # (F', N, T, D)
        index = columns[:, None, :, None].expand(-1, chosen.shape[1], -1, chosen.shape[3])
        return chosen.gather(2, index).flatten(0, 1)

    def _clean_at(self, site: Site, layer: int, facts: Tensor, at: Tensor) -> Tensor:
        """(F'N, D) clean values of a site at the restored token, once per draw."""
        return self.clean[site][facts, layer, at].repeat_interleave(self.config.draws, 0)

    def _restoring(
        self, runs: Sequence[tuple[Site, int]], layer: int, facts: Tensor, at: Tensor
    ) -> AbstractContextManager[None]:
        """Inside: in the groups of rows whose window holds `layer`, the site's first column is clean."""
        rows = len(facts) * self.config.draws

        def restore(site: Site) -> Callable[[Tensor], Tensor]:
            clean = self._clean_at(site, layer, facts, at)
            groups = [i for i, (s, centre) in enumerate(runs) if s == site and layer in self._window(centre)]

            def change(value: Tensor) -> Tensor:
                value = value.clone()
                for group in groups:
                    value[group * rows : (group + 1) * rows, 0] = clean
                return value

            return change

        changes: dict[SiteKey, Callable[[Tensor], Tensor]] = {(site, layer): restore(site) for site in self.outputs}
        return patch(self.model, changes)
