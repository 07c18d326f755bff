#!/usr/bin/env bash
# Packs what a GPU machine without network lacks, in pieces of at most 56 MiB: gpu_kit.sh <directory of kit.txt and pack.sh>
# writes build/gpu_kit/part-* (verl, vLLM, Ray and what they need) and build/gpu_kit/wheels (baselines, the report's needs).
# Run it where the package index can be reached, with the Python version of the GPU machine in PYTHON.
set -euo pipefail
kit=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHON=${PYTHON:-python3.12}
mkdir -p build/gpu_kit/wheels
"$PYTHON" -m pip download --quiet --no-deps --only-binary :all: --dest build/gpu_kit/wheels \
    liger-kernel==0.8.5 cut-cross-entropy==25.1.1 humanize nvidia-ml-py rich markdown-it-py mdurl pygments xxhash \
    sacrebleu portalocker regex tabulate colorama lxml statsmodels patsy matplotlib contourpy cycler fonttools kiwisolver \
    pyparsing httpx httpcore h11 anyio idna certifi uvloop py-cpuinfo msgpack cloudpickle jsonschema-specifications \
    prometheus-client gguf einops nest-asyncio
# what the packed transformers asks for, whatever the machine has
"$PYTHON" -m pip download --quiet --no-deps --only-binary :all: --dest build/gpu_kit/wheels/pinned \
    "$(grep '^huggingface-hub==' requirements/gpu.txt | cut -d' ' -f1)"
bash "$kit/pack.sh" build/gpu_kit
(cd build/gpu_kit && sha256sum part-* > parts.sha256)
du -sh build/gpu_kit/wheels build/gpu_kit/part-*
