#!/usr/bin/env bash
# benchmarks/gpu.py on a machine with a GPU and without a network: bash benchmarks/gpu.sh [what gpu.py takes].
#
# Packages that are missing there come as wheels in .wheels/, and are unpacked into a temporary folder: nothing is
# installed. A file cut into pieces (split -b 60M FILE FILE.part-) in .models/NAME/ is put together again.
# docs/performance.md says how to fill both folders; git ignores them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}

for first in .models/*/*.part-aa; do
    whole=${first%.part-aa}
    if [[ -e $first && ! -e $whole ]]; then
        cat "$whole".part-* > "$whole.joined" && mv "$whole.joined" "$whole"
    fi
done

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
for wheel in .wheels/*.whl; do
    [[ -e $wheel ]] || continue
    name=$(basename "$wheel")
    if ! "$PYTHON" -c "from importlib.metadata import version; version('${name%%-*}')" 2>/dev/null; then
        "$PYTHON" -m zipfile -e "$wheel" "$site"
        echo "from $wheel: ${name%%-*}" >&2
    fi
done

export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$PYTHON" benchmarks/gpu.py --device cuda "$@"
