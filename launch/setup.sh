#!/usr/bin/env bash
# Makes or reuses .venv with the pinned CPU stack; prints how long it took. Sourced by quickstart.sh and tests/run.sh.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.12 python3.11 python3}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: no Python 3.11 or 3.12 with pip and venv found; install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
    return 1
}

install_stack() {
    # pip compiles 34,000 files one after another, half of its time; compileall takes all cores.
    local pip=(.venv/bin/python -m pip install --no-deps --no-compile --disable-pip-version-check --quiet)
    local torch
    torch="$(grep '^torch==' requirements/cpu.txt)"
    if ! "${pip[@]}" "$torch" 2>/dev/null; then
        echo "setup: $torch is not on the configured package index; taking it from PyTorch's own CPU index" >&2
        "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu "$torch"
    fi
    "${pip[@]}" -r requirements/cpu.txt
    "${pip[@]}" --editable .
    # Some packages hold templates that are no Python: what does not compile is left as it is, as pip leaves it.
    .venv/bin/python -W ignore -m compileall -qq -j 0 .venv/lib/python3.*/site-packages || true
}

wanted="$(cat requirements/cpu.txt pyproject.toml | sha256sum | cut -d' ' -f1)"
if [[ "$(cat .venv/installed 2>/dev/null || true)" != "$wanted" ]]; then
    started=$SECONDS
    if ! .venv/bin/python -c 'import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
        python="$(find_python)"
        rm -rf .venv
        "$python" -m venv .venv
    fi
    echo "setup: installing $(grep -c '^[a-zA-Z]' requirements/cpu.txt) pinned packages into .venv (about 2 minutes, 6 GB)"
    install_stack
    echo "$wanted" > .venv/installed
    echo "setup: installation took $((SECONDS - started)) s"
fi
