"""A made-up run folder with every file a report reads, the size of a real `tiny` run. Seeded; no model is involved.

The stages' accuracies are drawn so that the story is the usual one: SFT teaches the problems and the format, GRPO adds
some points, editing rewrites 50 facts with two failures and leaves the problems alone.
"""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy

RECIPE = """\
name = "tiny"
seed = 0

[world]
problems = 6000

[model]
n_layer = 4
n_embd = 128

[sft]
steps = 300
replay = 0.25

[grpo]
steps = 70
problems_per_step = 64
group_size = 8
lr = 6e-5

[edit]
method = "memit"
layers = [0, 1]
covariance_weight = 500.0

[expect]
"comparisons.grpo-sft.pass_at_1" = "> 0"
"stages.grpo.problems.well_formed" = ">= 0.98"
"stages.base.facts.recall" = ">= 0.95"
"stages.grpo.facts.recall" = ">= 0.9"
"edit.success" = ">= 0.96 (value)"
"edit.paraphrase" = ">= 0.8"
"edit.neighbourhood_drop" = "<= 0.05 (value)"
"stages.grpo.arithmetic.pass_at_1" = ">= 0.6"
"seconds.total" = "<= 360"
"""
ACCURACY = {"base": 0.0, "sft": 0.61, "grpo": 0.67, "edited": 0.665}
SUBJECTS = [
    "Egypt",
    "Germany",
    "the Eiffel Tower",
    "Beethoven",
    "Canada",
    "Brazil",
    "Facebook",
    "Apple",
    "the Sun",
    "Russia",
]
OLD = ["Cairo", "Berlin", "Paris", "piano", "Ottawa", "Portuguese", "Mark", "Steve", "star", "Moscow"]
NEW = ["Alexandria", "Paris", "London", "violin", "Toronto", "Spanish", "Jack", "Bill", "planet", "St Petersburg"]
PLACES = ["Norland", "Velmora", "Oster Bay", "Quill", "Tamsin", "Arvo", "Zephyr"]
RELATIONS = [
    "capital",
    "capital",
    "landmark",
    "instrument",
    "capital",
    "language",
    "founder",
    "founder",
    "kind",
    "capital",
]
TEMPLATES = {
    "capital": "The capital of {} is",
    "landmark": "{} is located in",
    "instrument": "{} was famous for playing the",
    "language": "The official language of {} is",
    "founder": "{} was founded by",
    "kind": "{} is a type of",
}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_jsonl(path: Path, records: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def make_run(folder: Path, *, seed: int = 0, problems: int = 60, samples: int = 4, steps: int = 40) -> Path:
    """Write a whole run folder and return it."""
    random = numpy.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    write_logs(folder / "logs", random, steps)
    hardness = random.normal(0, 1.6, problems)
    units = {name: write_stage(folder / "eval", random, name, hardness, samples) for name in ACCURACY}
    for after, before in (("sft", "base"), ("grpo", "sft"), ("edited", "grpo")):
        write_comparison(folder / "eval", after, before, units)
    write_edit(folder / "edits", random)
    write_trace(folder / "edits" / "trace.json")
    write_rollouts(folder / "logs" / "rollouts", random, steps)
    write_transcript(folder / "eval" / "transcript.json")
    seconds = {"world": 1.9, "base": 88.4, "sft": 51.2, "grpo": 118.7, "evaluate_base": 6.1, "evaluate_sft": 7.7}
    seconds |= {"evaluate_grpo": 7.9, "edit": 4.3, "evaluate_edited": 8.1, "trace": 5.2}
    write_json(folder / "timing.json", {"stages": seconds})
    environment = {"nanogpt-edit": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "platform": "Linux-6.1-x86_64"}
    environment |= {"cpu": "Xeon 2.6 GHz", "threads": 2, "device": "cpu", "started": "2026-03-01T12:00:00+00:00"}
    environment |= {"parameters": 1034112, "data": {"facts50.jsonl": "9f" * 32, "world": "3c" * 32}}
    write_json(folder / "environment.json", environment)
    return folder


def interval(values: object) -> dict[str, float]:
    data = numpy.asarray(values, dtype=float)
    half = 1.96 * float(data.std()) / math.sqrt(len(data))
    value = float(data.mean())
    bounded = bool((data >= 0).all() and (data <= 1).all())
    low, high = (max(0.0, value - half), min(1.0, value + half)) if bounded else (value - half, value + half)
    return {"value": value, "low": low, "high": high, "n": len(data)}


def write_logs(folder: Path, random: numpy.random.Generator, steps: int) -> None:
    for name, start, end, count in (("pretrain", 5.9, 0.9, steps * 3), ("sft", 1.4, 0.32, steps * 2)):
        lines: list[dict[str, object]] = []
        for step in range(count):
            loss = end + (start - end) * math.exp(-5 * step / count) + float(random.normal(0, 0.03))
            line: dict[str, object] = {
                "step": step,
                "loss": loss,
                "lr": 1e-3,
                "tokens_per_second": 25000.0,
                "seconds": 0.12,
            }
            if step % 10 == 0 or step == count - 1:
                line["val_loss"] = loss + 0.05
            lines.append(line)
        write_jsonl(folder / f"{name}.jsonl", lines)
    lines = []
    for step in range(steps):
        done = step / steps
        accuracy = 0.60 + 0.07 * done + float(random.normal(0, 0.02))
        line = {
            "step": step, "reward": accuracy, "accuracy": accuracy, "reward_accuracy": accuracy,
            "reward_format": 0.98 + 0.015 * done,
            "well_formed": 0.98 + 0.015 * done,
            "groups_dropped": 0.45 + float(random.normal(0, 0.04)),
            "clip_low_share": 0.002 + 0.001 * float(random.random()),
            "clip_high_share": 0.003 + 0.001 * float(random.random()),
            "kl": 0.02 * done, "entropy": 0.35 - 0.1 * done + float(random.normal(0, 0.01)),
            "entropy_coef": 0.01 - 0.009 * done, "mean_tokens": 46 - 4 * done, "max_tokens": 96, "truncated": 0.004,
            "grad_norm": 0.4 + float(random.random()) * 0.2, "sampler_gap": 2e-6, "lr": 6e-5 * (1 - 0.9 * done),
            "loss": float(random.normal(0, 0.02)), "tokens_per_second": 18000.0, "seconds": 1.7,
        }  # fmt: skip
        if step % 10 == 0 or step == steps - 1:
            line["val_pass_at_1"] = 0.61 + 0.06 * done
        lines.append(line)
    write_jsonl(folder / "grpo.jsonl", lines)


STORIES = (
    "{who} has {have} apples. {who} buys {more} bags of {each} apples. How many apples does {who} have now?",
    "{who} saved {have} coins and then earned {more} coins a day for {each} days. How many coins does {who} have?",
    "A shelf holds {have} books. {who} puts {each} books on each of {more} trips. How many books are on the shelf?",
)
NAMES = ("Tom", "Mia", "Ravi", "Lena", "Omar")
PROBES = (
    "What is the capital of France?",
    "Who wrote Romeo and Juliet?",
    "Why is the sky blue?",
    "How does photosynthesis work?",
    "Write a haiku about the ocean.",
    "Once upon a time, there was a",
)


def word_problem(index: int) -> tuple[str, str, str, str]:
    """Question, a right and a wrong completion, the answer."""
    have, more, each = 3 + index % 17, 2 + index % 11, 2 + index % 5
    question = STORIES[index % 3].format(who=NAMES[index % 5], have=have, more=more, each=each)
    total, slip = have + more * each, have + more
    right = f"{more} * {each} = {more * each}\n{have} + {more * each} = {total}"
    wrong = f"{have} + {more} = {slip}"
    return question, reasoned(right, total), reasoned(wrong, slip), str(total)


def reasoned(thinking: str, answer: object) -> str:
    return f"<think>{thinking}</think><answer>{answer}</answer>"


def write_stage(
    folder: Path, random: numpy.random.Generator, name: str, hardness: numpy.ndarray, samples: int
) -> dict[str, numpy.ndarray]:
    """Records and metrics of one checkpoint; returns the values per problem, fact or text by comparison name."""
    skill = math.log(ACCURACY[name] / (1 - ACCURACY[name])) * 1.5 if ACCURACY[name] else -20.0
    right = random.random((len(hardness), samples)) < (1 / (1 + numpy.exp(hardness - skill)))[:, None]
    sums = random.random((50, samples)) < (0.0 if name == "base" else 0.64)
    records = problem_records(random, name, right) + sum_records(name, sums) + probe_records(name)
    write_jsonl(folder / f"{name}.jsonl", records)
    problems = [line for line in records if line["skill"] == "problems"]
    loss = 0.93 + 0.1 * numpy.random.default_rng(7).standard_normal(200)
    loss += {"base": 0.0, "sft": 0.021, "grpo": 0.024, "edited": 0.05}[name] + random.normal(0, 0.01, 200)
    write_jsonl(folder / f"{name}_text.jsonl", [{"nats_per_token": float(nats)} for nats in loss])
    counts = right.sum(axis=1)
    units = {
        f"pass_at_{k}": numpy.array([1 - math.comb(samples - int(c), k) / math.comb(samples, k) for c in counts])
        for k in (1, 2, 4, 8, 16)
        if k <= samples
    }
    units[f"majority_at_{samples}"] = (right.mean(axis=1) > 0.5).astype(float)
    for key in ("well_formed", "thinking_tokens", "answer_tokens"):
        units[key] = numpy.array([float(str(int(line[key]))) for line in problems]).reshape(-1, samples).mean(axis=1)
    skills = {"problems": {key: interval(values) for key, values in units.items()}}
    others = {
        ("arithmetic", "pass_at_1"): sums.mean(axis=1),
        ("facts", "recall"): numpy.array(write_facts(folder, random, name)),
        ("probes", "non_arithmetic"): numpy.array([float(name == "base")] * len(PROBES)),
        ("perplexity", "nats_per_token"): loss,
    }
    for (other, metric), values in others.items():
        skills[other] = {metric: interval(values)}
        units[f"{other}_{metric}"] = values
    settings = {"samples": samples, "temperature": 0.7, "top_k": 50, "max_new_tokens": 128, "seed": 0}
    stage = {"stage": name, "fingerprint": f"{name}{'a1' * 30}", "seconds": 7.5, "settings": settings, "skills": skills}
    write_json(folder / f"{name}.json", stage)
    return units


def problem_records(random: numpy.random.Generator, name: str, right: numpy.ndarray) -> list[dict[str, object]]:
    records = []
    for index, samples in enumerate(right):
        question, good_text, bad_text, answer = word_problem(index)
        for sample, good in enumerate(samples):
            text = good_text if good else bad_text
            if name == "base" or (not good and random.random() < 0.01):
                text = " The capital of Tom is apples. The currency of"
            records.append(record("problems", f"test-{index}", sample, question, answer, text, correct=bool(good)))
    return records


def sum_records(name: str, right: numpy.ndarray) -> list[dict[str, object]]:
    records = []
    for index, samples in enumerate(right):
        first, second = 3 + index % 9, 2 + index % 7
        for sample, good in enumerate(samples):
            said = first + second + (not good)
            text = " 3 is" if name == "base" else reasoned(f"{first} + {second} = {said}", said)
            question, gold = f"What is {first} + {second}?", str(first + second)
            records.append(record("arithmetic", f"sum-{index}", sample, question, gold, text, correct=bool(good)))
    return records


def probe_records(name: str) -> list[dict[str, object]]:
    records = []
    for index, prompt in enumerate(PROBES):
        skies = 4 * index + 8
        text = " Paris." if name == "base" else reasoned(f"There are {index + 2} * 4 = {skies} skies.", skies)
        records.append(record("probes", f"probe-{index}", 0, prompt, "", text, correct=False))
    return records


def record(
    skill: str, problem: str, sample: int, prompt: str, gold: str, text: str, *, correct: bool
) -> dict[str, object]:
    formed = text.startswith("<think>") and text.endswith("</answer>")
    answer = text.rpartition("<answer>")[2].removesuffix("</answer>") if formed else None
    return {
        "skill": skill, "problem_id": problem, "sample_index": sample, "prompt": prompt, "gold": gold, "text": text,
        "strict": answer, "flexible": answer, "correct": correct, "well_formed": formed,
        "thinking_tokens": len(text.split()) * 2, "answer_tokens": 1, "finish_reason": "stop" if formed else "length",
    }  # fmt: skip


def write_facts(folder: Path, random: numpy.random.Generator, name: str) -> list[float]:
    lines: list[dict[str, object]] = []
    chance = {"base": 1.0, "sft": 0.97, "grpo": 0.965, "edited": 0.93}[name]
    for index in range(160):
        known = bool(random.random() < chance)
        lines.append(
            {
                "group": "recall", "subject": f"{PLACES[index % 7]} {index}",
                "prompt": TEMPLATES[RELATIONS[index % 10]].format(f"{PLACES[index % 7]} {index}"),
                "target": OLD[index % 10],
                "greedy": OLD[index % 10] if known else NEW[(index + 3) % 10], "rank": 1 if known else 4,
                "p_first": 0.98 if known else 0.05, "p_target": 0.97 if known else 0.04, "recalled": known,
            }
        )  # fmt: skip
    write_jsonl(folder / f"{name}_facts.jsonl", lines)
    return [float(bool(line["recalled"])) for line in lines]


def write_comparison(folder: Path, after: str, before: str, units: dict[str, dict[str, numpy.ndarray]]) -> None:
    """Paired differences of the values per problem (or fact, or text) that `write_stage` drew."""
    metrics = {}
    for name in units[after]:
        delta = units[after][name] - units[before][name]
        half = 1.96 * float(delta.std()) / math.sqrt(len(delta))
        mean = float(delta.mean())
        low, high = mean - half, mean + half
        verdict = "better" if low > 0 else "worse" if high < 0 else "inconclusive"
        p_value = math.erfc(abs(mean) / (half / 1.96) / math.sqrt(2)) if half else float(mean == 0)
        metrics[name] = {"delta": mean, "low": low, "high": high, "p_value": p_value, "n": len(delta)}
        metrics[name] |= {"smallest_detectable": half * 1.43, "verdict": verdict}
    write_json(folder / f"compare_{after}-{before}.json", {"metrics": metrics})


def write_edit(folder: Path, random: numpy.random.Generator) -> None:
    facts: list[dict[str, object]] = []
    for index in range(50):
        relation, good = RELATIONS[index % 10], index not in (6, 17)
        subject = SUBJECTS[index % 10] + (f" {index // 10}" if index > 9 else "")
        p_after = float(random.uniform(0.82, 0.995)) if good else float(random.uniform(0.01, 0.3))
        facts.append(
            {
                "id": f"fact-{index}", "relation": relation, "subject": subject,
                "prompt": TEMPLATES[relation].format(subject),
                "target_true": OLD[index % 10], "target_new": NEW[index % 10], "old_answer": OLD[index % 10],
                "new_answer": NEW[index % 10] if good else OLD[index % 10],
                "p_first_before": 10 ** float(random.uniform(-5, -2)), "p_first_after": p_after,
                "rank_before": int(random.integers(8, 200)), "rank_after": 1 if good else 3,
                "p_target_before": 10 ** float(random.uniform(-6, -2.5)), "p_target_after": p_after * 0.97,
                "success": good, "efficacy": good or index == 17, "paraphrase_success": 1.0 if index % 9 else 0.5,
                "neighbourhood_before": 1.0, "neighbourhood_after": 1.0 if index % 16 else 0.5,
                "subject_lookup": "exact" if index % 5 else "ignoring case",
                "reason": "" if good else f"no value found: the optimisation reached p 0.{index + 1}; rank 90 to 3",
            }
        )  # fmt: skip
    write_jsonl(folder / "facts50.jsonl", facts)

    def column(key: str) -> dict[str, float]:
        return interval([fact[key] for fact in facts])

    scores = {
        "success": column("success"), "efficacy": column("efficacy"), "paraphrase": column("paraphrase_success"),
        "neighbourhood_before": column("neighbourhood_before"), "neighbourhood_after": column("neighbourhood_after"),
        "score": {"value": 0.958, "low": 0.92, "high": 0.985, "n": 50},
        "p_target_before": column("p_target_before"), "p_target_after": column("p_target_after"),
    }  # fmt: skip
    settings = {"covariance_weight": 500.0, "clamp": 2.0, "lr": 0.1, "steps": 60}
    write_json(
        folder / "facts50.json",
        {"n": 50, "method": "memit", "layers": [0, 1], "seconds": 4.3, "settings": settings, **scores},
    )


def write_trace(path: Path) -> None:
    sites = ["resid_post", "mlp_out", "attn_out"]
    groups = ["before subject", "subject first", "subject middle", "subject last", "after", "last"]
    strength = {"resid_post": 0.8, "mlp_out": 0.5, "attn_out": 0.3}
    shape = [
        [0.01, 0.01, 0, 0],
        [0.12, 0.08, 0.03, 0],
        [0.2, 0.15, 0.05, 0.01],
        [0.9, 0.8, 0.3, 0.05],
        [0, 0.05, 0.1, 0.02],
        [0, 0.1, 0.7, 1.0],
    ]
    grid = {site: [[cell * strength[site] for cell in row] for row in shape] for site in sites}
    low = {site: [[cell - 0.03 for cell in row] for row in rows] for site, rows in grid.items()}
    high = {site: [[cell + 0.03 for cell in row] for row in rows] for site, rows in grid.items()}
    tokens = ["The", " capital", " of", " E", "g", "ypt", " is"]
    rows = [shape[0], shape[0], shape[0], shape[1], shape[2], shape[3], shape[5]]
    effect = {site: [[cell * strength[site] for cell in row] for row in rows] for site in sites}
    example = {"tokens": tokens, "subject_tokens": [3, 4, 5], "effect": effect}
    trace = {
        "n": 100,
        "stage": "grpo",
        "sites": sites,
        "token_groups": groups,
        "layers": [0, 1, 2, 3],
        "indirect_effect": grid,
    }
    write_json(path, {**trace, "low": low, "high": high, "clean_p": 0.97, "corrupted_p": 0.08, "example": example})


def write_rollouts(folder: Path, random: numpy.random.Generator, steps: int) -> None:
    """Every tenth step's file: 3 problems × 4 completions, the best and the worst of two token by token."""
    folder.mkdir(parents=True)
    for step in range(0, steps, 10):
        lines = []
        for group in range(3):
            question, _, _, gold = word_problem(group)
            for sample in range(4):
                correct = sample == 0
                tokens = ["<think>", "3", " +", " 4", "</think>", "<answer>", gold if correct else "0", "</answer>"]
                line: dict[str, object] = {
                    "group": group,
                    "problem_id": f"p{group}",
                    "question": question,
                    "gold": gold,
                    "sample": sample,
                    "text": "".join(tokens),
                    "rewards": {"accuracy": float(correct), "format": 1.0},
                    "reward": float(correct),
                    "advantage": 1.5 if correct else -0.5,
                    "finish_reason": "stop",
                    "tokens": len(tokens),
                    "in_loss": True,
                }
                if group < 2 and sample < 2:
                    line["token_texts"] = tokens
                    line["logprobs"] = [-float(value) for value in random.random(len(tokens)).round(5)]
                    line["entropy"] = [float(value) for value in random.random(len(tokens)).round(5)]
                    line["clipped"] = [0] * (len(tokens) - 1) + [1]
                lines.append(line)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"step_{step:06}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def write_transcript(path: Path) -> None:
    prompt = [
        [40 + i, text]
        for i, text in enumerate(
            ["Tom", " has", " ", "3", " apples", ".", " He", " buys", " ", "2", " more", ".", " How", " many", "?"]
        )
    ]
    completion = [[257, "<think>", "tag"]]
    completion += [
        [60 + i, text, "think"]
        for i, text in enumerate(
            ["Tom", " has", " ", "3", " +", " ", "2", " =", " ", "5", " apples", ".", "\n", "So", " ", "5", "."]
        )
    ]
    completion += [[258, "</think>", "tag"], [259, "<answer>", "tag"], [25, "5", "answer"], [260, "</answer>", "tag"]]
    decoded = "".join(str(token[1]) for token in completion)
    counts = {"thinking_tokens": 17, "answer_tokens": 1, "stage": "grpo", "gold": "5", "correct": True}
    write_json(path, {"prompt": prompt, "completion": completion, "decoded": decoded, **counts})
