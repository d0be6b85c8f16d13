"""What a finished run computed, in a few hashes: two runs that computed the same print the same.

    python benchmarks/fingerprints.py runs/tiny runs/again

A change that only moves code must leave every line as it is. Hashed are the weights of each model (names, shapes,
numbers), the patch, and summary.json without what no two runs share: seconds, date and machine.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from safetensors.numpy import load_file

CHANGING = ("seconds", "environment")  # entries of summary.json that differ from run to run


def tensors_sha256(file: Path) -> str:
    """The hash of the tensors in a .safetensors file, whatever else its header says."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        found.update(f"{name} {tensor.shape} {tensor.dtype}\n".encode())
        found.update(tensor.tobytes())
    return found.hexdigest()


def without(value: object, names: tuple[str, ...]) -> object:
    """`value`, a parsed JSON text, without the entries of these names at any depth."""
    if isinstance(value, dict):
        return {name: without(entry, names) for name, entry in value.items() if name not in names}
    return [without(entry, names) for entry in value] if isinstance(value, list) else value


def fingerprints(run: Path) -> dict[str, str]:
    """File, below the run's folder -> SHA-256 of what it says."""
    found = {
        str(file.relative_to(run)): tensors_sha256(file)
        for file in [*sorted(run.glob("*/model.safetensors")), *sorted(run.glob("edits/*.safetensors"))]
    }
    summary = without(json.loads((run / "summary.json").read_text(encoding="utf-8")), CHANGING)
    return found | {"summary.json": hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()}


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        for name, sha256 in fingerprints(Path(folder)).items():
            print(f"{sha256}  {folder}/{name}")
