#!/usr/bin/env bash
# The whole pipeline on one machine without a GPU: three objectives, RL after each, one report (runs/index.html).
# Further arguments are overrides: bash launch/quickstart.sh objective=sft,dft seed=1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
for argument in "$@"; do
    [[ "$argument" == objective=* ]] && objectives=""
done
exec .venv/bin/python -m launch run microworld ${objectives-objective=sft,prift_mass,lp_sft} "$@"
