#!/usr/bin/env bash
# Set-up, then every gate a change must pass. Arguments go to pytest: bash runs/test.sh -k planner
# Tests that take long are left out; bash runs/test.sh --slow runs them too, as continuous integration does.
#
#   WAMKIT_TEST_WORKERS=4   test processes (2 unless told otherwise)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash runs/setup_extras.sh libero ray clients browser # run for real here; the development set-up has none of them

export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the test processes share the cores; more threads only wait for each other
python="$PWD/.venv/bin/python" # .venv/bin/pytest and its like name an interpreter by path: in a copy, the original's
failed=()

gate() { # name, command...
    printf '\n== %s\n' "$1"
    "${@:2}" </dev/null || failed+=("$1")
}

gate "ruff check" "$python" -m ruff check
gate "ruff format" "$python" -m ruff format --check
gate "mypy" "$python" -m mypy
gate "pytest" "$python" -m pytest -n "${WAMKIT_TEST_WORKERS:-2}" --dist worksteal "$@"

if [ ${#failed[@]} -gt 0 ]; then
    printf '\nFailed: %s\n' "${failed[*]}" >&2
    exit 1
fi
