"""The skills a checkpoint is measured on: raw records first, then metrics with intervals.

problems and arithmetic: n samples each, pass@k, majority@k, format. facts: is the target the greedy continuation of its
prompt? probes: does a prompt that has nothing to do with arithmetic get an arithmetic answer? perplexity: held-out
text. All intervals are over problems (facts, blocks), never over samples.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt_edit.data.problems import Problem, prompt_ids
from nanogpt_edit.engine.engine import Completion, Engine
from nanogpt_edit.engine.sampling import Sampling
from nanogpt_edit.errors import UserError
from nanogpt_edit.evaluate.answers import extract, is_correct
from nanogpt_edit.evaluate.metrics import majority_at_k, pass_at_k
from nanogpt_edit.evaluate.records import EvalRecord, write_records
from nanogpt_edit.evaluate.stats import Difference, Interval, bootstrap_mean, mcnemar_exact, paired_difference
from nanogpt_edit.evaluate.transcript import count_tokens
from nanogpt_edit.files import write_json, write_jsonl
from nanogpt_edit.model.checkpoint import fingerprint
from nanogpt_edit.model.gpt import GPT
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


@dataclass(frozen=True)
class EvaluateConfig:
    """How a checkpoint is measured."""

    problems: int = 400
    """Test problems (all there are, if fewer)."""
    samples: int = 16
    """Completions of each."""
    arithmetic_samples: int = 8
    """Completions of each of the simple arithmetic problems."""
    temperature: float = 0.7
    """Divides the logits before sampling."""
    top_k: int | None = 50
    """Only the k most probable tokens can be drawn."""
    max_new_tokens: int = 128
    """A completion is cut after this many tokens."""
    max_slots: int = 512
    """Completions written at once; speed and memory only, the text is the same."""
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
        temperature=config.temperature, top_k=config.top_k, max_new_tokens=config.max_new_tokens, seed=config.seed
    )
    problems = skills.problems[: config.problems]
    records = solve(engine, problems, n=config.samples, sampling=sampling, skill="problems", label=f"evaluate {stage}")
    records += solve(
        engine, skills.arithmetic, n=config.arithmetic_samples, sampling=sampling, skill="arithmetic"
    )
    probes = [Problem(question=text, rationale="", answer="", id=f"probe-{i}") for i, text in enumerate(skills.probes)]
    records += solve(engine, probes, n=4, sampling=sampling, skill="probes")
    recalls = recall(model, skills.questions)

    metrics: dict[str, dict[str, Interval]] = {}
    for skill in ("problems", "arithmetic"):
        own = [record for record in records if record.skill == skill]
        if own:
            metrics[skill] = problem_metrics(own, seed=config.seed)
    if probes:
        own = [record for record in records if record.skill == "probes"]
        metrics["probes"] = {"non_arithmetic": _mean_over_problems(own, lambda r: not is_arithmetic(r.text))}
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
    """`n` graded completions of each problem, in order. A problem's samples depend on its id, not on its company."""
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
        stop_ids=frozenset({tokenizer.answer_end}),
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
        text = tokenizer.decode(completion.token_ids)
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
    """pass@k for k = 1, 4, n, majority@n, share well-formed, lengths: means over problems with intervals."""
    per_problem = by_problem(records)
    n = min(len(own) for own in per_problem)
    correct = np.array([sum(record.correct for record in own[:n]) for own in per_problem])
    metrics = {
        f"pass_at_{k}": bootstrap_mean(pass_at_k(n, correct, k), seed=seed) for k in sorted({1, min(4, n), n})
    }
    if n > 1:
        metrics[f"majority_at_{n}"] = bootstrap_mean(majorities(per_problem, n), seed=seed)
    metrics["well_formed"] = _mean_over_problems(records, lambda r: r.well_formed)
    metrics["truncated"] = _mean_over_problems(records, lambda r: r.finish_reason == "length")
    metrics["thinking_tokens"] = _mean_over_problems(records, lambda r: r.thinking_tokens)
    metrics["answer_tokens"] = _mean_over_problems(records, lambda r: r.answer_tokens)
    return metrics


def majorities(per_problem: Sequence[Sequence[EvalRecord]], k: int) -> np.ndarray:
    """Per problem, the share of its majority answer(s) that is right."""
    return np.array(
        [majority_at_k([record.strict for record in own], own[0].gold, k=k) for own in per_problem], dtype=float
    )


def by_problem(records: Sequence[EvalRecord]) -> list[list[EvalRecord]]:
    """Records of each problem, in the order they come (a problem's records stand together)."""
    return [list(own) for _, own in groupby(records, key=lambda record: record.problem_id)]


def _mean_over_problems(records: Sequence[EvalRecord], value: Callable[[EvalRecord], float]) -> Interval:
    return bootstrap_mean(np.array([np.mean([value(record) for record in own]) for own in by_problem(records)]))


def is_arithmetic(text: str) -> bool:
    """Does a completion turn to arithmetic: an equation, or nothing but a number for an answer?"""
    found = extract(text)
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
    """Share recalled in each group, over subjects: a subject's questions are averaged first."""
    metrics = {}
    for group in dict.fromkeys(recall.group for recall in recalls):
        subjects: dict[str, list[bool]] = {}
        for each in recalls:
            if each.group == group:
                subjects.setdefault(each.subject, []).append(each.recalled)
        metrics[group] = bootstrap_mean(np.array([np.mean(own) for own in subjects.values()]))
    return metrics


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


def compare(before: Evaluation, after: Evaluation) -> dict[str, Difference]:
    """Paired differences on the same problems, facts and blocks: what `after` gained or lost over `before`."""
    return compare_records(before.records, after.records) | compare_recalls(before.recalls, after.recalls)


def compare_records(before: Sequence[EvalRecord], after: Sequence[EvalRecord]) -> dict[str, Difference]:
    """pass@1, pass@n, majority@n, format and length on the problems, pass@1 on arithmetic.

    Raises UserError when the two were not measured on the same problems.
    """
    differences: dict[str, Difference] = {}
    for skill in ("problems", "arithmetic"):
        pair = [by_problem([r for r in records if r.skill == skill]) for records in (before, after)]
        if not pair[0] or not pair[1]:
            continue
        if [own[0].problem_id for own in pair[0]] != [own[0].problem_id for own in pair[1]]:
            raise UserError(f"the two evaluations used different {skill}; evaluate both with the same settings.")
        n = min(len(own) for side in pair for own in side)
        correct = [np.array([sum(record.correct for record in own[:n]) for own in side]) for side in pair]
        prefix = "" if skill == "problems" else f"{skill}_"
        for k in sorted({1, n}) if skill == "problems" else [1]:
            differences[f"{prefix}pass_at_{k}"] = paired_difference(*(pass_at_k(n, c, k) for c in correct))
        if skill == "problems":
            if n > 1:
                majority = [majorities(side, n) for side in pair]
                differences[f"majority_at_{n}"] = _with_mcnemar(paired_difference(*majority), *majority)
            for name in ("well_formed", "thinking_tokens"):
                values = [np.array([np.mean([getattr(r, name) for r in own]) for own in side]) for side in pair]
                differences[name] = paired_difference(*values)
    return differences


def _with_mcnemar(difference: Difference, before: np.ndarray, after: np.ndarray) -> Difference:
    """The same difference with the p-value of McNemar's exact test on right / wrong majorities."""
    fields = asdict(difference) | {"p_value": mcnemar_exact(before > 0.5, after > 0.5)}
    return Difference(**fields)


def compare_recalls(before: Sequence[Recall], after: Sequence[Recall]) -> dict[str, Difference]:
    """Paired differences of the share recalled, by group of facts, over subjects."""
    differences = {}
    for group in dict.fromkeys(recall.group for recall in before):
        sides = []
        for recalls in (before, after):
            subjects: dict[str, list[bool]] = {}
            for each in recalls:
                if each.group == group:
                    subjects.setdefault(each.subject, []).append(each.recalled)
            sides.append(np.array([np.mean(own) for own in subjects.values()]))
        if len(sides[0]) == len(sides[1]):
            differences[f"facts_{group}"] = paired_difference(sides[0], sides[1])
    return differences
