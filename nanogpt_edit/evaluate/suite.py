"""The skills a checkpoint is measured on: raw records first, then metrics with intervals.

problems and arithmetic: n samples each, pass@k, majority@k, format. facts: is the target the greedy continuation of its
prompt? probes: does a prompt that has nothing to do with arithmetic get an arithmetic answer? perplexity: held-out
text. All intervals are over problems (facts, blocks), never over samples.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt_edit import processes
from nanogpt_edit.data.problems import Problem, prompt_ids
from nanogpt_edit.data.text import read_text, token_blocks
from nanogpt_edit.engine.engine import Completion, Engine
from nanogpt_edit.engine.sampling import Sampling
from nanogpt_edit.errors import UserError
from nanogpt_edit.evaluate.answers import TAGS, extract, is_correct
from nanogpt_edit.evaluate.metrics import score_problems
from nanogpt_edit.evaluate.records import EvalRecord, write_records
from nanogpt_edit.evaluate.stats import (
    CONFIDENCE,
    Difference,
    Interval,
    bootstrap_mean,
    mcnemar_exact,
    paired_difference,
)
from nanogpt_edit.evaluate.transcript import count_tokens
from nanogpt_edit.files import read_jsonl, write_json, write_jsonl
from nanogpt_edit.model.checkpoint import fingerprint
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.progress import progress

# What a model of word problems makes of other questions (the prompts of the earlier system's report, and a few more).
PROBES = (
    "What is the capital of France?",
    "Who wrote Romeo and Juliet?",
    "Why is the sky blue?",
    "How does photosynthesis work?",
    "If all dogs are animals, and Buddy is a dog, what is Buddy?",
    "Write a haiku about the ocean.",
    "What would happen if the moon disappeared?",
    "The history of the internet began in",
    "Once upon a time, there was a",
    "The Eiffel Tower is located in",
    "The best way to learn a language is",
    "My favourite colour is",
)
EQUATION_SIGNS = frozenset("=+*/")
TEXT_BLOCK = 256  # tokens of a block of held-out text
PASS_AT = (1, 4, 16)  # the k of pass@k and majority@k, where there are that many samples


@dataclass(frozen=True)
class EvaluateConfig:
    """How a checkpoint is measured."""

    problems: int = 400
    """Test problems (all there are, if fewer)."""
    samples: int = 16
    """Completions of each."""
    edited_samples: int = 4
    """Completions of each for the edited model, where only the change is of interest."""
    arithmetic_samples: int = 8
    """Completions of each of the simple arithmetic problems."""
    temperature: float = 0.7
    """Divides the logits before sampling."""
    top_k: int | None = 50
    """Only the k most probable tokens can be drawn."""
    max_new_tokens: int | None = None
    """A completion is cut after this many tokens (None: in a run a quarter more than 99 of 100 worked solutions have,
    alone as many as block_size leaves)."""
    max_slots: int = 512
    """Completions written at once; speed and memory only, the text is the same."""
    text: str | None = None
    """Held-out text for the perplexity: a file, a folder, or a hub data set, of which its test split is read (None:
    in a run the validation problems' questions, alone not measured)."""
    perplexity_tokens: int = 16_384
    """Held-out text read for the perplexity."""
    seed: int = 0
    """Chooses the samples and the bootstrap."""


@dataclass(frozen=True)
class Recall:
    """Does the model continue `prompt` with `target`? One line of `eval/<stage>_facts.jsonl`."""

    group: str  # which set of facts: recall, recall_edited, edited
    subject: str
    prompt: str
    target: str
    greedy: str  # the model's continuation, as many tokens as the target has
    rank: int  # of the target's first token; 1 is the most probable
    p_first: float
    p_target: float  # of the whole target
    recalled: bool  # greedy decoding writes the target


def read_recalls(path: Path) -> list[Recall]:
    """Read `eval/<stage>_facts.jsonl`. Raises UserError naming the file when a line is not a recall."""
    try:
        return [Recall(**record) for record in read_jsonl(path)]  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(f"{path}: not a file of recalled facts ({error}).") from None


@dataclass(frozen=True)
class Question:
    """A prompt whose continuation is known."""

    group: str
    subject: str
    prompt: str
    target: str


@dataclass(frozen=True)
class Skills:
    """What there is to measure on; an empty part is left out."""

    problems: Sequence[Problem] = ()
    arithmetic: Sequence[Problem] = ()
    questions: Sequence[Question] = ()
    probes: Sequence[str] = ()
    text: Tensor | None = None  # (N, T + 1) blocks of held-out text


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint, measured: `metrics[skill][metric]` with the raw records behind it."""

    stage: str
    fingerprint: str
    seconds: float
    settings: Mapping[str, object]
    metrics: Mapping[str, Mapping[str, Interval]]
    records: tuple[EvalRecord, ...]
    recalls: tuple[Recall, ...]

    def save(self, folder: Path) -> None:
        """Write `<stage>.jsonl`, `<stage>_facts.jsonl` and, last, `<stage>.json`."""
        write_records(folder / f"{self.stage}.jsonl", self.records)
        write_jsonl(folder / f"{self.stage}_facts.jsonl", [asdict(recall) for recall in self.recalls])
        skills = {
            skill: {name: asdict(interval) for name, interval in metrics.items()}
            for skill, metrics in self.metrics.items()
        }
        head = {"stage": self.stage, "fingerprint": self.fingerprint, "seconds": self.seconds}
        write_json(folder / f"{self.stage}.json", {**head, "settings": dict(self.settings), "skills": skills})


def evaluate(model: GPT, skills: Skills, config: EvaluateConfig, *, stage: str) -> Evaluation:
    """Measure `model`, which must carry its tokenizer."""
    started = time.perf_counter()
    engine = Engine(model, max_slots=config.max_slots)
    sampling = Sampling(
        temperature=config.temperature,
        top_k=config.top_k,
        max_new_tokens=config.max_new_tokens or model.config.block_size,
        seed=config.seed,
    )
    problems = skills.problems[: config.problems]
    records = solve(engine, problems, n=config.samples, sampling=sampling, skill="problems", label=f"evaluate {stage}")
    records += solve(engine, skills.arithmetic, n=config.arithmetic_samples, sampling=sampling, skill="arithmetic")
    probes = [Problem(question=text, rationale="", answer="", id=f"probe-{i}") for i, text in enumerate(skills.probes)]
    records += solve(engine, probes, n=4, sampling=sampling, skill="probes")
    recalls = recall(model, skills.questions)

    metrics: dict[str, dict[str, Interval]] = {}
    for skill in ("problems", "arithmetic"):
        own = [record for record in records if record.skill == skill]
        if own:
            metrics[skill] = problem_metrics(own, seed=config.seed)
    if probes:
        metrics["probes"] = probe_metrics([record for record in records if record.skill == "probes"])
    if recalls:
        metrics["facts"] = fact_metrics(recalls)
    if skills.text is not None:
        rows = max(1, config.perplexity_tokens // skills.text.shape[1])
        metrics["perplexity"] = perplexity(model, skills.text[:rows])
    return Evaluation(
        stage=stage,
        fingerprint=fingerprint(model),
        seconds=time.perf_counter() - started,
        settings=asdict(config),
        metrics=metrics,
        records=tuple(records),
        recalls=tuple(recalls),
    )


def solve(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    n: int,
    sampling: Sampling,
    skill: str,
    label: str | None = None,
) -> list[EvalRecord]:
    """`n` graded completions of each problem, in order. A problem's samples depend on its id, not on its company, nor
    on how many processes the problems are dealt out to."""

    def work(own: Sequence[Problem]) -> list[list[EvalRecord]]:
        records = solve_here(engine, own, n=n, sampling=sampling, skill=skill, label=label)
        return [records[i * n : (i + 1) * n] for i in range(len(own))]

    return [record for records in processes.dealt(problems, work) for record in records]


def solve_here(
    engine: Engine, problems: Sequence[Problem], *, n: int, sampling: Sampling, skill: str, label: str | None
) -> list[EvalRecord]:
    """`solve` in this process."""
    if not problems:
        return []
    tokenizer = engine.model.tokenizer
    if tokenizer is None:
        raise UserError("the model has no tokenizer; load it from a directory that has one.")
    prompts = [prompt_ids(problem, tokenizer) for problem in problems]
    finished: list[Completion] = []
    stream = engine.stream(
        prompts,
        n=n,
        sampling=sampling,
        stop_ids=frozenset(i for i in (tokenizer.answer_end, tokenizer.eos_id) if i is not None),
        prompt_keys=[zlib.crc32(problem.id.encode()) for problem in problems],
    )
    with progress(label or skill, len(problems) * n, unit="completions") as bar:
        for completion in stream:
            finished.append(completion)
            if label:
                bar.update(len(finished))
    finished.sort(key=lambda completion: (completion.prompt_index, completion.sample_index))
    records = []
    for completion in finished:
        problem = problems[completion.prompt_index]
        text = tokenizer.decode([i for i in completion.token_ids if i != tokenizer.eos_id])
        found = extract(text)
        thinking_tokens, answer_tokens = count_tokens(completion.token_ids, tokenizer)
        records.append(
            EvalRecord(
                skill=skill,
                problem_id=problem.id,
                sample_index=completion.sample_index,
                prompt=problem.question,
                gold=problem.answer,
                text=text,
                strict=found.strict,
                flexible=found.flexible,
                correct=is_correct(found.strict, problem.answer),
                well_formed=found.well_formed,
                thinking_tokens=thinking_tokens,
                answer_tokens=answer_tokens,
                finish_reason=completion.finish_reason,
            )
        )
    return records


def problem_metrics(records: Sequence[EvalRecord], *, seed: int = 0) -> dict[str, Interval]:
    """pass@k, majority@k, format and lengths: means over problems with their intervals."""
    scores = score_problems(records, ks=PASS_AT, seed=seed)
    return {name: bootstrap_mean(values, seed=seed) for name, values in scores.values.items()}


def probe_metrics(records: Sequence[EvalRecord]) -> dict[str, Interval]:
    """Share of completions that do not turn to arithmetic, over prompts."""
    answers: dict[str, list[bool]] = {}
    for record in records:
        answers.setdefault(record.problem_id, []).append(not is_arithmetic(record.text))
    return {"non_arithmetic": bootstrap_mean([float(np.mean(own)) for own in answers.values()])}


def is_arithmetic(text: str) -> bool:
    """Does a completion turn to arithmetic: an equation, or nothing but a number for an answer?"""
    found = extract(text)
    for tag in TAGS:  # their slash is no division
        text = text.replace(tag, " ")
    return bool(EQUATION_SIGNS & set(text)) or (found.strict is not None and found.strict.strip().isdigit())


@torch.inference_mode()
def recall(model: GPT, questions: Sequence[Question], *, rows: int = 256) -> list[Recall]:
    """Read each question's prompt and target in one pass: rank, probability, and what greedy decoding would write.

    The greedy text is the most probable token at each place given the target so far; it equals the target exactly
    when greedy decoding writes the target.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None
    model.eval()
    recalls: list[Recall] = []
    for start in range(0, len(questions), rows):
        part = questions[start : start + rows]
        prompts = [tokenizer.encode(question.prompt) for question in part]
        targets = [tokenizer.encode(f" {question.target}") for question in part]
        lengths = [len(p) + len(t) for p, t in zip(prompts, targets, strict=True)]
        token_ids = torch.zeros(len(part), max(lengths), dtype=torch.long)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            token_ids[row, : lengths[row]] = torch.tensor([*prompt, *target])
        states = model.hidden(token_ids.to(model.device))
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            at = slice(len(prompt) - 1, len(prompt) - 1 + len(target))
            logprobs = model.logits(states[row, at]).float().log_softmax(dim=-1).cpu()  # (target tokens, V)
            own = logprobs.gather(1, torch.tensor(target)[:, None]).squeeze(1)
            greedy = logprobs.argmax(dim=-1).tolist()
            recalls.append(
                Recall(
                    **asdict(part[row]),
                    greedy=tokenizer.decode(greedy).strip(),
                    rank=1 + int((logprobs[0] > own[0]).sum()),
                    p_first=own[0].exp().item(),
                    p_target=own.sum().exp().item(),
                    recalled=greedy == target,
                )
            )
    return recalls


def fact_metrics(recalls: Sequence[Recall]) -> dict[str, Interval]:
    """Share recalled in each group, over subjects."""
    return {group: bootstrap_mean(list(values.values())) for group, values in recalled_by_subject(recalls).items()}


def recalled_by_subject(recalls: Sequence[Recall]) -> dict[str, dict[str, float]]:
    """group -> subject -> share recalled of its questions, subjects in order of appearance."""
    groups: dict[str, dict[str, list[bool]]] = {}
    for each in recalls:
        groups.setdefault(each.group, {}).setdefault(each.subject, []).append(each.recalled)
    return {
        group: {subject: float(np.mean(own)) for subject, own in subjects.items()} for group, subjects in groups.items()
    }


def held_out_text(source: str, tokenizer: Tokenizer, *, block_size: int) -> Tensor:
    """The test split of a text, in blocks for `Skills.text`: (N, T + 1). Raises what `read_text` raises."""
    return token_blocks(read_text(source, split="test"), tokenizer, block_size=min(TEXT_BLOCK, block_size - 1))


@torch.inference_mode()
def perplexity(model: GPT, blocks: Tensor, *, rows: int = 32) -> dict[str, Interval]:
    """exp of the mean nats per token over `blocks` (N, T + 1); the interval is over blocks."""
    model.eval()
    nats = []
    for part in blocks.split(rows):
        token_ids = part.to(model.device)
        logits = model(token_ids[:, :-1]).float()
        loss = F.cross_entropy(logits.flatten(0, 1), token_ids[:, 1:].flatten(), reduction="none")
        nats.append(loss.view(len(part), -1).mean(dim=1).double().cpu())
    mean = bootstrap_mean(torch.cat(nats).numpy())
    bounds = {name: math.exp(getattr(mean, name)) for name in ("value", "low", "high")}
    return {"perplexity": Interval(**bounds, n=mean.n), "nats_per_token": mean}


def compare_records(before: Sequence[EvalRecord], after: Sequence[EvalRecord]) -> dict[str, Difference]:
    """Paired differences on the same problems: what `after` gained or lost over `before`.

    With different numbers of samples the first ones of each problem count. pass@k and majority@k of the problems (the
    latter with McNemar's exact p-value where the majorities are right or wrong), format, length; pass@1 of arithmetic.
    Raises UserError when the two were not measured on the same problems.
    """
    differences: dict[str, Difference] = {}
    for skill, prefix in (("problems", ""), ("arithmetic", "arithmetic_")):
        sides = [[record for record in records if record.skill == skill] for records in (before, after)]
        if not all(sides):
            continue
        samples = min(1 + max(record.sample_index for record in side) for side in sides)
        old, new = (
            score_problems([record for record in side if record.sample_index < samples], ks=PASS_AT) for side in sides
        )
        if old.problem_ids != new.problem_ids:
            raise UserError(f"the two evaluations used different {skill}; evaluate both with the same settings.")
        for name in old.values if skill == "problems" else ("pass_at_1",):
            pair = old.values[name], new.values[name]
            difference = paired_difference(*pair, higher_is_better=name not in ("truncated", "thinking_tokens"))
            if name.startswith("majority"):
                p_value = mcnemar_exact(*(values > 0.5 for values in pair))
                verdict = difference.verdict if p_value < 1 - CONFIDENCE else "inconclusive"
                difference = replace(difference, p_value=p_value, verdict=verdict)
            differences[prefix + name] = difference
    return differences


def compare_recalls(before: Sequence[Recall], after: Sequence[Recall]) -> dict[str, Difference]:
    """Paired differences of the share recalled, over subjects, for each group of facts with the same on both sides.

    A group of one subject has no interval and is left out.
    """
    old, new = recalled_by_subject(before), recalled_by_subject(after)
    return {
        f"facts_{group}": paired_difference(list(shares.values()), [new[group][subject] for subject in shares])
        for group, shares in old.items()
        if len(shares) > 1 and shares.keys() == new.get(group, {}).keys()
    }
