#!/usr/bin/env bash
# All checks of an ordinary run: lint, types, unit tests, then real stages. Arguments go to pytest instead:
#   bash tests/run.sh tests/launch        bash tests/run.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
export OMP_NUM_THREADS=1
if (($#)); then
    exec .venv/bin/python -m pytest "$@"
fi
.venv/bin/ruff check .
.venv/bin/pyright --pythonpath .venv/bin/python
.venv/bin/python -m pytest -m "not slow and not e2e" -n 2 --dist worksteal --durations 10
# in the order of collection: the longest files, which have few tests, would come last otherwise
exec .venv/bin/python -m pytest -m "e2e and not slow" -n 2 --dist loadfile --no-loadscope-reorder --durations 25
