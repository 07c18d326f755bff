#!/usr/bin/env bash
# The check of docs/gpu.md on a machine with one GPU and no network: gpu_check.sh [minutes] [further arguments].
# Takes what of build/gpu_kit (gpu_kit.sh) has arrived: wheels are installed, and once all parts are there they are put
# together. Without any of it items 1 to 3 run. Results stay in build/gpu_check, are gone on with by the next call, and
# go to $OUT as one archive, with the logs of all stages, where that is set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
minutes=${1:-9}
shift || true
python=${PYTHON:-python3}
kit=build/gpu_kit
if [[ -d $kit/wheels && ! -e $kit/wheels.done ]]; then
    # what the machine has already stays as it is
    missing=()
    for wheel in "$kit"/wheels/*.whl; do
        "$python" -c "import importlib.metadata as m, sys; m.distribution(sys.argv[1])" \
            "$(basename "$wheel" | cut -d- -f1)" 2>/dev/null || missing+=("$wheel")
    done
    ((${#missing[@]} == 0)) ||
        "$python" -m pip install --quiet --no-deps --no-index --upgrade --target "$kit/extra" "${missing[@]}"
    touch "$kit/wheels.done"
fi
if [[ -e $kit/parts.sha256 && ! -e $kit/site.done ]] && (cd "$kit" && sha256sum --check --status parts.sha256); then
    mkdir -p "$kit/site"
    cat "$kit"/part-* | xz -dc -T0 | tar xf - -C "$kit/site"
    "$python" -m pip install --quiet --no-deps --no-index --upgrade --target "$kit/site" "$kit"/wheels/pinned/*.whl
    touch "$kit/site.done"
fi
path=$PWD
[[ -e $kit/site.done ]] && path=$PWD/$kit/site:$path
[[ -d $kit/extra ]] && path=$path:$PWD/$kit/extra
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH}
code=0
"$python" -m launch.gpu_check --minutes "$minutes" "$@" || code=$?
if [[ -n ${OUT:-} ]]; then
    find build/gpu_check -type f \( -name '*.json' -o -name '*.jsonl' -o -name '*.log' \) -size -2048k -print0 |
        tar czf "$OUT/gpu_check.tgz" --null -T - || true
fi
exit "$code"
