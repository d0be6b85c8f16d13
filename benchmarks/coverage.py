"""Does a 95% interval hold the truth 95 times in 100, and does "no change" raise its alarm at most 5 times?

Each situation is a world whose true mean is known: problems of very different difficulty, several samples of each.
From it `--simulations` evaluations of n problems are drawn, each with its intervals from `common/stats`; beside them
the percentile bootstrap, for what it would have said. Seeds are fixed, so that the table is the same again.

    python benchmarks/coverage.py --out coverage.json
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanogpt_edit.common.stats import Interval, paired_difference, quantity, share

Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Values, float]]  # n problems' values, and the true mean
Pair = Callable[[np.random.Generator, int], tuple[Values, Values, float]]  # before, after, the true mean change
PROBLEMS = (12, 50, 400)
RESAMPLES = 500


def solved(generator: np.random.Generator, chances: Values, samples: int | NDArray[np.int64]) -> Values:
    """Each problem's share of right answers, when its answers are right with these chances."""
    return generator.binomial(samples, chances) / samples


def chances(generator: np.random.Generator, mean: float, n: int, *, alike: float = 1.0) -> Values:
    """Difficulties of n problems about a mean; the larger `alike`, the nearer to it."""
    return generator.beta(alike * mean + 1e-9, alike * (1 - mean) + 1e-9, size=n)


def shares(low: float, high: float, samples: int | None, *, alike: float = 1.0) -> Draw:
    """Shares whose true mean lies anywhere from `low` to `high`; None samples: one to eight, different per problem."""

    def draw(generator: np.random.Generator, n: int) -> tuple[Values, float]:
        mean = float(generator.uniform(low, high))
        count = generator.integers(1, 9, size=n) if samples is None else samples
        return solved(generator, chances(generator, mean, n, alike=alike), count), mean

    return draw


def mostly_solved(generator: np.random.Generator, n: int) -> tuple[Values, float]:
    """Nine problems of ten are always solved, the tenth has any chance: most values are equal."""
    own = np.where(generator.random(n) < 0.9, 1.0, generator.random(n))
    return solved(generator, own, 8), 0.95


def pairs(low: float, high: float, samples: int, repaired: float, *, alike: float = 1.0) -> Pair:
    """The same problems twice; the second time this share of the chance to fail is gone."""

    def draw(generator: np.random.Generator, n: int) -> tuple[Values, Values, float]:
        mean = float(generator.uniform(low, high))
        own = chances(generator, mean, n, alike=alike)
        before = solved(generator, own, samples)
        return before, solved(generator, own + repaired * (1 - own), samples), repaired * (1 - mean)

    return draw


def forgotten(lost: float, found: float) -> Pair:
    """Yes-or-no facts known half the time: a share of the known is lost, as large a share of the unknown is found."""

    def draw(generator: np.random.Generator, n: int) -> tuple[Values, Values, float]:
        before, luck = generator.random(n) < 0.5, generator.random(n)
        after = np.where(before, luck >= lost, luck < found)
        return before.astype(float), after.astype(float), 0.5 * (found - lost)

    return draw


def tokens(generator: np.random.Generator, n: int) -> tuple[Values, float]:
    return generator.poisson(generator.gamma(2, 10, size=n), size=(4, n)).mean(axis=0), 20.0


def skewed_tokens(generator: np.random.Generator, n: int) -> tuple[Values, float]:
    return generator.lognormal(3, 0.8, size=n), math.exp(3 + 0.8**2 / 2)


def nats(generator: np.random.Generator, n: int) -> tuple[Values, float]:
    return generator.normal(2, 0.3, size=n), 2.0


def token_pairs(generator: np.random.Generator, n: int) -> tuple[Values, Values, float]:
    own = generator.gamma(2, 10, size=n)
    return generator.poisson(own).astype(float), generator.poisson(own).astype(float), 0.0


def nats_pairs(generator: np.random.Generator, n: int) -> tuple[Values, Values, float]:
    before = generator.normal(2, 0.3, size=n)
    return before, before + generator.normal(0, 0.02, size=n), 0.0


SHARES: dict[str, Draw] = {
    "yes or no, any share": shares(0, 1, 1),
    "yes or no, 90 to 100%": shares(0.9, 1, 1),
    "16 samples, 20 to 80%": shares(0.2, 0.8, 16),
    "16 samples, problems alike": shares(0.2, 0.8, 16, alike=8.0),
    "16 samples, 90 to 99%": shares(0.9, 0.99, 16),
    "4 samples, 1 to 10%": shares(0.01, 0.1, 4),
    "1 to 8 samples, any share": shares(0, 1, None),
    "nine of ten always solved": mostly_solved,
}
QUANTITIES: dict[str, Draw] = {"tokens": tokens, "tokens, very skewed": skewed_tokens, "nats": nats}
CHANGES: dict[str, Pair] = {
    "change, 16 samples, none": pairs(0.2, 0.8, 16, 0.0),
    "change, 16 samples, a tenth repaired": pairs(0.2, 0.8, 16, 0.1),
    "change, 4 samples, 90 to 99%, none": pairs(0.9, 0.99, 4, 0.0),
    "change, facts, 20% turn either way": forgotten(0.2, 0.2),
    "change, facts, 4% lost": forgotten(0.04, 0.0),
    "change, facts, 30% lost": forgotten(0.3, 0.05),
}
QUANTITY_CHANGES: dict[str, Pair] = {"change of tokens, none": token_pairs, "change of nats, none": nats_pairs}


def percentile(values: Values, generator: np.random.Generator) -> Interval:
    """The percentile bootstrap (Efron 1979)."""
    means = values[generator.integers(0, len(values), size=(RESAMPLES, len(values)), dtype=np.int32)].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(value=float(values.mean()), low=float(low), high=float(high), n=len(values))


def holds(interval: Interval, truth: float) -> bool:
    return interval.low - 1e-12 <= truth <= interval.high + 1e-12


def measure(name: str, n: int, simulations: int) -> dict[str, object]:
    """How often the interval, and the percentile bootstrap's, hold the truth, in percent; of "none" the alarms too."""
    generator = np.random.default_rng([zlib.crc32(name.encode()), n])
    ours = theirs = alarms = 0
    of_quantities = name in QUANTITIES or name in QUANTITY_CHANGES
    for seed in range(simulations):
        if name in CHANGES or name in QUANTITY_CHANGES:
            before, after, truth = (CHANGES | QUANTITY_CHANGES)[name](generator, n)
            found = paired_difference(before, after, resamples=RESAMPLES, seed=seed, are_shares=not of_quantities)
            alarms += found.verdict != "inconclusive"
            values, interval = after - before, Interval(found.delta, found.low, found.high, found.n)
        else:
            values, truth = (SHARES | QUANTITIES)[name](generator, n)
            interval = quantity(values, resamples=RESAMPLES, seed=seed) if of_quantities else share(values)
        ours += holds(interval, truth)
        theirs += holds(percentile(values, generator), truth)
    unchanged = name.endswith(("none", "either way"))
    return {
        "situation": name,
        "n": n,
        "coverage": 100 * ours / simulations,
        "percentile": 100 * theirs / simulations,
        "false_alarms": 100 * alarms / simulations if unchanged else None,
    }


def table(rows: Sequence[dict[str, object]]) -> str:
    """As Markdown, situations down, numbers of problems across: coverage (percentile bootstrap), false alarms."""
    sizes = sorted({int(str(row["n"])) for row in rows})
    lines = ["| situation |" + "".join(f" n = {n} | bootstrap |" for n in sizes) + " false alarms |"]
    lines.append("|---|" + "---:|" * (2 * len(sizes) + 1))
    for name in dict.fromkeys(str(row["situation"]) for row in rows):
        own = [row for row in rows if row["situation"] == name]
        cells = "".join(f" {row['coverage']:.1f} | {row['percentile']:.1f} |" for row in own)
        alarms = [f"{row['false_alarms']:.1f}" for row in own if row["false_alarms"] is not None]
        lines.append(f"| {name} |{cells} {', '.join(alarms)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000, help="evaluations drawn per situation and n")
    parser.add_argument("--out", type=Path, help="a .json file for the numbers")
    chosen = parser.parse_args()
    rows = []
    for name in (*SHARES, *QUANTITIES, *CHANGES, *QUANTITY_CHANGES):
        rows += [measure(name, n, chosen.simulations) for n in PROBLEMS]
        print(f"{name}: " + ", ".join(f"{row['coverage']:.1f}% at n = {row['n']}" for row in rows[-len(PROBLEMS) :]))
    print(table(rows))
    if chosen.out:
        chosen.out.write_text(json.dumps({"name": "coverage", "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
