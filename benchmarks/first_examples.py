"""Which word problems the demo's models get right nearly always: where README and playground have their examples from.

    python benchmarks/first_examples.py runs/tiny [RUN …]

The problems that a run's evaluation got right most often (and PROMPTS, those shown now) are sampled again from its SFT
and its GRPO model: 64 times each, four seeds, temperature 0.7. Printed are the right ones of each, the surest first.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import nanogpt_edit as ne
from nanogpt_edit.evaluation.answers import extract, normalise
from nanogpt_edit.evaluation.records import read_records

PROMPTS = {
    "Leo has 10 toys. Dan has twice as many. How many toys does Dan have?": "20",
    "Max walks 5 miles a day. How many miles does he walk in 4 days?": "20",
    "Dan has 5 balls, and Mia has twice as many. How many balls does Mia have?": "10",
}
CANDIDATES, SEEDS, SAMPLES = 60, 4, 16


def main(runs: list[str]) -> None:
    asked = PROMPTS | surest(runs)
    right: dict[str, list[int]] = {prompt: [] for prompt in asked}
    for run in runs:
        for stage in ("sft", "grpo"):
            model = ne.load(f"{run}/{stage}")
            counts = dict.fromkeys(asked, 0)
            for seed in range(SEEDS):
                for found in ne.generate(model, list(asked), n=SAMPLES, temperature=0.7, seed=seed):
                    counts[found.prompt] += extract(found.text).strict == normalise(asked[found.prompt])
            for prompt, count in counts.items():
                right[prompt].append(count)
    for prompt in sorted(asked, key=lambda each: (-min(right[each]), -sum(right[each]))):
        print(f"{right[prompt]} of {SEEDS * SAMPLES}  {prompt}")


def surest(runs: list[str]) -> dict[str, str]:
    """The evaluated problems with the most right samples, the shortest first among equals, and their answers."""
    shares: dict[str, list[bool]] = defaultdict(list)
    gold: dict[str, str] = {}
    for run in runs:
        for record in read_records(Path(run) / "eval" / "grpo.jsonl"):
            if record.skill == "problems":
                shares[record.prompt].append(record.correct)
                gold[record.prompt] = record.gold
    best = sorted(shares, key=lambda prompt: (-sum(shares[prompt]) / len(shares[prompt]), len(prompt)))
    return {prompt: gold[prompt] for prompt in best[:CANDIDATES]}


if __name__ == "__main__":
    main(sys.argv[1:] or ["runs/tiny"])
