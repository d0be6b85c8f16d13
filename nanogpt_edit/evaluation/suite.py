"""The skills a checkpoint is measured on: raw records first, then metrics with intervals.

problems and arithmetic: n samples each, pass@k, majority@k, format. facts: is the target the greedy continuation of its
prompt? probes: does a prompt that has nothing to do with arithmetic get an arithmetic answer? perplexity: held-out
text. All intervals are over problems (facts, blocks), never over samples.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.common import distributed
from nanogpt_edit.common.stats import Interval, quantity, share
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.samples import prompt_ids, refuse_markup
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.evaluation.answers import extract, is_correct
from nanogpt_edit.evaluation.config import ALONE_TOKENS, EvaluateConfig
from nanogpt_edit.evaluation.facts import Question, fact_metrics, recall
from nanogpt_edit.evaluation.metrics import score_problems
from nanogpt_edit.evaluation.perplexity import block_nats, perplexity
from nanogpt_edit.evaluation.probes import probe_metrics
from nanogpt_edit.evaluation.records import EvalRecord, Evaluation
from nanogpt_edit.evaluation.transcript import count_tokens
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of

PASS_AT = (1, 4, 16)  # the k of pass@k and majority@k, where there are that many samples


@dataclass(frozen=True)
class Skills:
    """What there is to measure on; an empty part is left out."""

    problems: Sequence[Problem] = ()
    arithmetic: Sequence[Problem] = ()
    questions: Sequence[Question] = ()
    probes: Sequence[Problem] = ()
    text: Tensor | None = None  # (N, T + 1) blocks of held-out text


@progress("measuring")
def evaluate(model: GPT, skills: Skills, config: EvaluateConfig, *, stage: str) -> Evaluation:
    """Measure `model`, which must carry its tokenizer."""
    started = time.perf_counter()
    engine = Engine(model, max_slots=config.max_slots)
    sampling = Sampling(
        temperature=config.temperature,
        top_k=config.top_k,
        max_new_tokens=config.max_new_tokens or min(ALONE_TOKENS, model.config.block_size),
        seed=config.seed,
    )
    short = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, config.sanity_tokens))
    problems, form = skills.problems[: config.problems], config.asked_as
    label = f"evaluate {stage}"
    records = solve(engine, problems, n=config.samples, sampling=sampling, skill="problems", form=form, label=label)
    arithmetic, n = skills.arithmetic, config.arithmetic_samples
    records += solve(engine, arithmetic, n=n, sampling=short, skill="arithmetic", form=form)
    records += solve(engine, skills.probes, n=4, sampling=short, skill="probes")
    recalls = recall(model, skills.questions)

    metrics: dict[str, dict[str, Interval]] = {}
    for skill in ("problems", "arithmetic"):
        own = [record for record in records if record.skill == skill]
        if own:
            metrics[skill] = problem_metrics(own, seed=config.seed)
    if skills.probes:
        metrics["probes"] = probe_metrics([record for record in records if record.skill == "probes"])
    if recalls:
        metrics["facts"] = fact_metrics(recalls)
    nats: list[float] = []
    text_sha256 = None
    if skills.text is not None:
        rows = max(1, config.perplexity_tokens // skills.text.shape[1])
        nats = block_nats(model, skills.text[:rows])
        text_sha256 = hashlib.sha256(skills.text[:rows].cpu().numpy().tobytes()).hexdigest()
        metrics["perplexity"] = perplexity(nats)
    return Evaluation(
        stage=stage,
        fingerprint=fingerprint(model),
        seconds=time.perf_counter() - started,
        settings=asdict(config),
        metrics=metrics,
        records=tuple(records),
        recalls=tuple(recalls),
        nats=tuple(nats),
        text_sha256=text_sha256,
    )


def solve(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    n: int,
    sampling: Sampling,
    skill: str,
    form: str = "{}",
    label: str | None = None,
) -> list[EvalRecord]:
    """`n` graded completions of each problem, in order, put as `form` says.

    A problem's samples depend on its id, not on its company, nor on how many processes the problems are dealt out to.
    """

    def work(own: Sequence[Problem]) -> list[list[EvalRecord]]:
        records = solve_here(engine, own, n=n, sampling=sampling, skill=skill, form=form, label=label)
        return [records[i * n : (i + 1) * n] for i in range(len(own))]

    return [record for records in distributed.map_over_ranks(problems, work) for record in records]


def solve_here(
    engine: Engine, problems: Sequence[Problem], *, n: int, sampling: Sampling, skill: str, form: str, label: str | None
) -> list[EvalRecord]:
    """`solve` in this process."""
    if not problems:
        return []
    tokenizer = tokenizer_of(engine.model)
    refuse_markup(problems, tokenizer)
    prompts = [prompt_ids(form.replace("{}", problem.question.strip()), tokenizer) for problem in problems]
    stream = engine.stream(
        prompts,
        n=n,
        sampling=sampling,
        stop_ids=tokenizer.stop_ids,
        prompt_keys=[zlib.crc32(problem.id.encode()) for problem in problems],
    )
    with progress(label or skill, len(problems) * n, unit="completions", brief=label is None) as bar:
        finished = sorted(bar.counted(stream), key=lambda each: (each.prompt_index, each.sample_index))
    records = []
    for completion in finished:
        problem = problems[completion.prompt_index]
        text = tokenizer.decode([i for i in completion.token_ids if i not in tokenizer.end_ids])
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
    return {
        name: quantity(values, seed=seed) if name.endswith("_tokens") else share(values)
        for name, values in scores.values.items()
    }


def problem_metric_names(samples: int) -> list[str]:
    """The names of `problem_metrics` of this many completions of each problem."""
    ks = [k for k in PASS_AT if k <= samples]
    names = [f"pass_at_{k}" for k in ks] + [f"majority_at_{k}" for k in ks if k > 1]
    return [*names, "flexible_pass_at_1", "well_formed", "truncated", "thinking_tokens", "answer_tokens"]
