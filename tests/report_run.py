"""A made-up run folder with every file a report reads, the size of a real `tiny` run.

Seeded, and written by the rooms' own writers; no model is involved, but everything that is computed from what a model
wrote is computed as in a run. The stages' accuracies are drawn so that the story is the usual one: SFT teaches the
problems and the format, GRPO adds some points, editing rewrites 50 facts with two failures and costs nothing.
"""

from __future__ import annotations

import functools
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy
import torch

from nanogpt_edit.common.files import write_json, write_jsonl
from nanogpt_edit.common.stats import quantity, share
from nanogpt_edit.data.fact_files import read_facts
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.world.world import WorldConfig, make_statements, make_world, sanity_arithmetic
from nanogpt_edit.editing.patch import EditedFact
from nanogpt_edit.editing.records import Edit
from nanogpt_edit.editing.scores import compare_states
from nanogpt_edit.evaluation.answers import extract, is_correct
from nanogpt_edit.evaluation.asking import AskedState, asks_of
from nanogpt_edit.evaluation.compare import compare_evaluations
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.evaluation.facts import FactState, fact_metrics
from nanogpt_edit.evaluation.perplexity import perplexity
from nanogpt_edit.evaluation.probes import PROBES, probe_metrics
from nanogpt_edit.evaluation.prompt_records import RULES, Drift, MovedText
from nanogpt_edit.evaluation.records import (
    Comparison,
    EvalRecord,
    Evaluation,
    Recall,
    TokenKind,
    ToldCompletion,
    Transcript,
    write_told,
)
from nanogpt_edit.evaluation.suite import problem_metrics
from nanogpt_edit.evaluation.targets import TargetScore
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.recipe import load_recipe, save_recipe
from nanogpt_edit.tracing.average import average_trace
from nanogpt_edit.tracing.config import SITES
from nanogpt_edit.tracing.tracing import Traced
from nanogpt_edit.training.records import Rollout, save_rollouts

EXPECT = {
    "comparisons.grpo-sft.pass_at_1": "> 0",
    "stages.grpo.problems.well_formed": ">= 0.98",
    "stages.base.facts.recall": ">= 0.95",
    "stages.grpo.facts.recall": ">= 0.9",
    "edit.success": ">= 0.96 (value)",
    "edit.paraphrase": ">= 0.8",
    "edit.neighbourhood_drop": "<= 0.05 (value)",
    "stages.grpo.arithmetic.pass_at_1": ">= 0.6",
    "seconds.total": "<= 360",
}
ACCURACY = {"base": 0.0, "sft": 0.61, "grpo": 0.67, "edited": 0.665}
RECALLED = {"base": 1.0, "sft": 0.97, "grpo": 0.965, "edited": 0.93}
NATS = {"base": 0.0, "sft": 0.021, "grpo": 0.024, "edited": 0.05}
SECONDS = {
    "world": 1.9, "base": 88.4, "sft": 51.2, "grpo": 118.7, "evaluate_base": 6.1, "evaluate_sft": 7.7,
    "evaluate_grpo": 7.9, "edited": 4.3, "evaluate_edited": 8.1, "trace": 5.2,
}  # fmt: skip
Random = numpy.random.Generator


def make_run(folder: Path, *, problems: int = 60, samples: int = 8, steps: int = 40) -> Path:
    """Write a whole run folder and return it."""
    shutil.copytree(_made(problems, samples, steps).name, folder)
    return folder


@functools.cache
def _made(problems: int, samples: int, steps: int) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    random, run = numpy.random.default_rng(0), RunFolder(Path(folder.name))
    save_recipe(replace(load_recipe("tiny"), expect=EXPECT), run.path / "recipe.toml")
    run.keep_environment(torch.device("cpu"), problems={"train": 6000, "test": problems}, parameters=1034112)
    for stage, seconds in SECONDS.items():
        run.add_seconds(stage, seconds, peak=int(seconds * 2**20))
    for name, lines in logs(random, steps).items():
        write_jsonl(run.log(name), lines)
    for step in range(0, steps, 10):
        save_rollouts(run.path / "logs" / "rollouts", step, rollouts(random))
    asked = make_world(WorldConfig(problems=20, validation=5, test=problems)).problems.test
    hardness = random.normal(0, 1.6, len(asked))
    for stage in ACCURACY:
        evaluation(random, stage, asked, hardness, samples).save(run.evaluations)
    for before, after in pairwise(ACCURACY):
        differences = compare_evaluations(*(run.evaluations / f"{stage}.jsonl" for stage in (before, after)))
        Comparison(after, before, differences).save(run.evaluations)
    write_json(run.evaluations / "transcript.json", asdict(transcript()))
    for stage in ("sft", "grpo", "edited"):
        write_told(run.evaluations / f"{stage}_tokens.jsonl", told(random))
    edit(random).save(run.edits)
    write_json(run.edits / "trace.json", asdict(average_trace([traced()] * 40, stage="base")))
    return folder


def logs(random: Random, steps: int) -> dict[str, list[dict[str, float]]]:
    """The lines of the three stages' logs."""

    def losses(start: float, end: float, count: int) -> Iterator[dict[str, float]]:
        for step in range(count):
            loss = end + (start - end) * math.exp(-5 * step / count) + random.normal(0, 0.03)
            line = {"step": step, "loss": loss, "lr": 1e-3, "tokens_per_second": 25000.0, "seconds": 0.12}
            yield line | ({"val_loss": loss + 0.05} if step % 10 == 0 or step == count - 1 else {})

    def rewards(step: int) -> dict[str, float]:
        done, rest = step / steps, {"lr": 6e-5, "loss": 0.02, "tokens_per_second": 18000.0, "seconds": 1.7}
        accuracy = 0.60 + 0.07 * done + random.normal(0, 0.02)
        line = {
            "step": step, "reward": accuracy, "reward_accuracy": accuracy, "accuracy": accuracy,
            "well_formed": 0.98 + 0.015 * done, "groups_dropped": 0.45 + random.normal(0, 0.04),
            "clip_low_share": 0.002 + 0.001 * random.random(), "clip_high_share": 0.003 + 0.001 * random.random(),
            "kl": 0.02 * done, "entropy": 0.35 - 0.1 * done + random.normal(0, 0.01), "mean_tokens": 46 - 4 * done,
            "max_tokens": 96, "truncated": 0.004, "grad_norm": 0.4 + random.random() * 0.2, "sampler_gap": 2e-6,
        }  # fmt: skip
        return line | rest | ({"val_pass_at_1": 0.61 + 0.06 * done} if step % 10 == 0 or step == steps - 1 else {})

    return {
        "pretrain": list(losses(5.9, 0.9, steps * 3)),
        "sft": list(losses(1.4, 0.32, steps * 2)),
        "grpo": [rewards(step) for step in range(steps)],
    }


def evaluation(
    random: Random, stage: str, asked: Sequence[Problem], hardness: numpy.ndarray, samples: int
) -> Evaluation:
    """One checkpoint, its answers drawn, the rest as `evaluate` makes it of them."""
    taught, sums = stage != "base", sanity_arithmetic()
    skill = math.log(ACCURACY[stage] / (1 - ACCURACY[stage])) * 1.5 if taught else -20.0
    right = random.random((len(asked), samples)) < (1 / (1 + numpy.exp(hardness - skill)))[:, None]
    problems = answers("problems", asked, right, taught=taught)
    arithmetic = answers("arithmetic", sums, random.random((len(sums), 4)) < 0.64, taught=taught)
    prompts = [replace(probe, rationale="There are 2 * 4 = 8 skies.") for probe in PROBES]
    probes = answers("probes", prompts, numpy.ones((len(prompts), 1), dtype=bool), taught=taught)
    recalls = [
        Recall("recall", f"{each.relation}: {each.subject}", each.prompts[0], each.target, *said)
        for each in make_statements()
        for known in [random.random() < RECALLED[stage]]
        for said in [(each.target, 1, 0.98, 0.97, True) if known else ("Oslo", 4, 0.05, 0.04, False)]
    ]
    nats = 0.93 + 0.1 * numpy.random.default_rng(7).standard_normal(60) + NATS[stage] + random.normal(0, 0.01, 60)
    return Evaluation(
        stage=stage,
        fingerprint=f"{stage}{'a1' * 30}",
        seconds=7.5,
        settings=asdict(EvaluateConfig(samples=samples)),
        metrics={
            "problems": problem_metrics(problems),
            "arithmetic": problem_metrics(arithmetic),
            "probes": probe_metrics(probes),
            "facts": fact_metrics(recalls),
            "perplexity": perplexity(nats.tolist()),
        },
        records=(*problems, *arithmetic, *probes),
        recalls=tuple(recalls),
        nats=tuple(nats.tolist()),
        text_sha256="f" * 64,
    )


def answers(skill: str, asked: Sequence[Problem], right: numpy.ndarray, *, taught: bool) -> list[EvalRecord]:
    """What is written on each problem, right or wrong, graded."""
    records = []
    for problem, samples in zip(asked, right, strict=True):
        for sample, good in enumerate(samples):
            said = problem.answer if good else "1"
            text = f"<think>{problem.rationale}</think><answer>{said}</answer>" if taught else " The capital of Tom is"
            found = extract(text)
            records.append(
                EvalRecord(
                    skill, problem.id, sample, problem.question, problem.answer, text, found.strict, found.flexible,
                    correct=is_correct(found.strict, problem.answer), well_formed=found.well_formed,
                    thinking_tokens=len(text.split()) * 2, answer_tokens=1,
                    finish_reason="stop" if found.well_formed else "length",
                )
            )  # fmt: skip
    return records


def edit(random: Random) -> Edit:
    """The 50 facts, of which ten were not known, two fail and four lose one of two neighbours."""
    unknown, win, lose = target(0.05, rank=7), target(0.6), target(0.2, rank=3)
    edited, before, after = [], [], []
    for index, fact in enumerate(read_facts("facts50")):
        good, p = index not in (6, 17), 10 ** random.uniform(-5, -2)
        lookup = "exact" if index % 5 else "ignoring case"
        edited.append(EditedFact(fact, lookup, probability=0.9 if good else 0.1, shift=1.0, steps=20))
        old = target(p, rank=int(random.integers(8, 200)))
        before.append(
            FactState(old, win if index % 5 else unknown, ((lose, win),) * 2, ((win, lose),) * 2, fact.target_true)
        )
        written = fact.target_new + ("" if index % 9 else " again") if good else fact.target_true
        new = target(random.uniform(0.82, 0.995) if good else random.uniform(0.01, 0.1), rank=1 if good else 3)
        paraphrases = ((win, lose), (win, lose) if index % 9 else (lose, win))
        neighbours = ((win, lose), (win, lose) if index % 16 else (lose, win))
        after.append(FactState(new, lose, paraphrases, neighbours, written, exact=written == fact.target_new))
    settings = {"covariance_weight": 500.0, "clamp": 2.0, "steps": 60}
    before = [replace(state, asked=asked(each, done=False)) for state, each in zip(before, edited, strict=True)]
    after = [replace(state, asked=asked(each, done=True)) for state, each in zip(after, edited, strict=True)]
    scores = replace(compare_states(edited, before, after), drift=moved())
    return Edit("facts50", "memit", (0, 1), 4.3, settings, scores)


def asked(edited: EditedFact, *, done: bool) -> tuple[AskedState, ...]:
    """A fact in every form: what is written says the new answer once that is `done`, and no claim moves; every fifth
    other fact of the subject is lost."""
    states = []
    for ask in asks_of(edited.fact):
        right = ask.wanted if done or not ask.true else ask.true
        lost = done and ask.kind == "same_subject" and len(edited.fact.prompt) % 5 == 0
        scores = {answer: target(0.6 if answer == right and not lost else 0.2) for answer in ask.answers}
        scores = {answer: replace(score, token_accuracy=float(not lost)) for answer, score in scores.items()}
        text = f" {right}." if RULES[ask.kind] in ("exact", "says", "denies") else None
        states.append(AskedState(ask, scores, text))
    return tuple(states)


def moved() -> Drift:
    places = [MovedText(f"and number {n} said", " that", 2.0 - n / 10, " that", 0.8, "\n", 0.3) for n in range(12)]
    return Drift(quantity([0.02, 0.03, 0.05]), share([0.01, 0.02, 0.0]), 768, tuple(places))


def target(p: float, rank: int = 1) -> TargetScore:
    return TargetScore(p_first=p, rank=rank, p_target=p * 0.97, p_token=p, token_accuracy=float(rank == 1))


def traced() -> Traced:
    rows = [
        [0.01, 0.01, 0, 0], [0.01, 0.01, 0, 0], [0.01, 0.01, 0, 0], [0.12, 0.08, 0.03, 0],
        [0.2, 0.15, 0.05, 0.01], [0.9, 0.8, 0.3, 0.05], [0, 0.1, 0.7, 0.89],
    ]  # fmt: skip
    return Traced(
        tokens=("The", " capital", " of", " E", "g", "ypt", " is"),
        subject_first=3,
        subject_last=5,
        target=" Cairo",
        clean_p=0.97,
        corrupted_p=0.08,
        effect={site: torch.tensor(rows) * strength for site, strength in zip(SITES, (0.8, 0.5, 0.3), strict=True)},
    )


def rollouts(random: Random) -> list[Rollout]:
    """A step's 3 problems × 4 completions, two of each of the first two token by token."""
    made = []
    for group in range(3):
        for sample in range(4):
            correct = sample == 0
            tokens = ("<think>", "3", " +", " 4", "</think>", "<answer>", "7" if correct else "0", "</answer>")
            rollout = Rollout(
                group=group,
                problem_id=f"p{group}",
                question="What is 3 + 4?",
                gold="7",
                sample=sample,
                text="".join(tokens),
                rewards={"accuracy": float(correct), "format": 1.0},
                reward=float(correct),
                advantage=1.5 if correct else -0.5,
                finish_reason="stop",
                tokens=len(tokens),
                in_loss=True,
            )
            if group < 2 and sample < 2:
                rollout = replace(
                    rollout,
                    token_texts=tokens,
                    logprobs=tuple((-random.random(len(tokens))).round(5).tolist()),
                    entropy=tuple(random.random(len(tokens)).round(5).tolist()),
                    clipped=(0,) * (len(tokens) - 1) + (1,),
                )
            made.append(rollout)
    return made


def told(random: Random) -> list[ToldCompletion]:
    """A right and a wrong completion, token by token."""
    texts = {answer: ("<think>", "3", " +", " 4", "</think>", "<answer>", answer, "</answer>") for answer in "70"}
    return [
        ToldCompletion(
            skill="problems",
            problem_id="p0",
            sample_index=sample,
            prompt="What is 3 + 4?",
            gold="7",
            correct=answer == "7",
            token_texts=tokens,
            logprobs=tuple((-random.random(len(tokens))).round(5).tolist()),
            entropy=tuple(random.random(len(tokens)).round(5).tolist()),
        )
        for sample, (answer, tokens) in enumerate(texts.items())
    ]


def transcript() -> Transcript:
    texts: list[tuple[str, TokenKind]] = [("<think>", "tag")]
    texts += [
        (text, "think") for text in ("Tom", " has", " ", "3", " +", " ", "2", " =", " ", "5", ".", "\n", "So", " 5")
    ]
    texts += [("</think>", "tag"), ("<answer>", "tag"), ("5", "answer"), ("</answer>", "tag")]
    return Transcript(
        stage="grpo",
        prompt=tuple(enumerate(("Tom", " has", " ", "3", " apples", ".", " How", " many", "?"), start=40)),
        completion=tuple((60 + i, text, kind) for i, (text, kind) in enumerate(texts)),
        decoded="".join(text for text, _ in texts),
        thinking_tokens=14,
        answer_tokens=1,
        gold="5",
        correct=True,
    )
