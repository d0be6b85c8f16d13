"""How much memory loading takes: the peak of a process that loads a model, beside the size of its weights.

GPT-2 (124 M, float32, one file) and a model of Llama 3.2 1B's sizes (1.24 B, bfloat16, shards of 500 MB), both with
random weights that transformers wrote. Each is loaded in a process of its own, by this package and by transformers;
every weight is then read once, as the pages of a mapped file count only when they are touched. What the process took
before loading is subtracted. The last line is one JSON object; `--out` keeps it.

    python benchmarks/memory.py --out benchmarks/results/memory.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import finish

GOAL = 2.0  # peak over weights
OURS = "from nanogpt_edit.checkpoint.checkpoint import load as read"
THEIRS = "from transformers import AutoModelForCausalLM; read = AutoModelForCausalLM.from_pretrained"
MEASURE = """
import sys, threading, time, torch
{imports}
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
peak = before = resident()
def watch():
    global peak
    while True:
        peak = max(peak, resident())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
model = read(sys.argv[1])
for weight in model.parameters():
    weight.sum()
peak = max(peak, resident())
weights = {{weight.data_ptr(): weight.nbytes for weight in model.parameters()}}
print((peak - before) / sum(weights.values()), sum(weights.values()))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the result")
    parser.add_argument("--small", action="store_true", help="GPT-2 only")
    chosen = parser.parse_args()
    parts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("gpt2",) if chosen.small else ("gpt2", "llama-1b"):
            path = Path(folder) / name
            write(name, path)
            ours, weights = measured(path, OURS)
            theirs, _ = measured(path, THEIRS)
            parts[name] = {"ours": ours, "peer": theirs, "weights_bytes": weights}
            print(
                f"{name}: {weights / 2**20:,.0f} MiB of weights; peak {ours:.2f} times that, transformers {theirs:.2f}"
            )
    finish(
        {
            "name": "memory",
            "ours": parts["gpt2"]["ours"],
            "peer": parts["gpt2"]["peer"],
            "unit": "peak resident memory while loading / bytes of the weights",
            "ratio": parts["gpt2"]["peer"] / parts["gpt2"]["ours"],
            "goal": GOAL,
            "reached": all(part["ours"] < GOAL for part in parts.values()),
            "parts": parts,
        },
        chosen.out,
    )


def write(name: str, path: Path) -> None:
    """A model directory with random weights, in a process of its own."""
    code = {
        "gpt2": "from transformers import GPT2Config as C, GPT2LMHeadModel as M; M(C()).save_pretrained(P)",
        "llama-1b": "import torch; torch.set_default_dtype(torch.bfloat16)\n"
        "from transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
        "M(C(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,"
        "num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True))"
        ".save_pretrained(P, max_shard_size='500MB')",
    }[name]
    subprocess.run([sys.executable, "-c", f"P = {str(path)!r}\n{code}"], check=True)


def measured(path: Path, imports: str) -> tuple[float, int]:
    """(peak over weights, bytes of the weights) of loading `path` in a fresh process."""
    code = MEASURE.format(imports=imports)
    found = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    ratio, weights = found.stdout.split()[-2:]
    return float(ratio), int(weights)


if __name__ == "__main__":
    main()
