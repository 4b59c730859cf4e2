#!/usr/bin/env bash
# What planning brings to zoo/wav-metaworld-small: one task that imitation solves and one that it solves half the time.
# Some hours on two cores; running it again continues where it stopped. Results go to results/planning_study.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash runs/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

out="${WAMKIT_STUDY:-outputs/planning_study}"
policy=zoo/wav-metaworld-small
tasks=(peg-insert-side-v3 window-open-v3)

# Without planning every success comes within 231 of the protocol's 500 control steps; the limit halves the time.
python runs/planning_study.py "$policy" --tasks "${tasks[@]}" --output "$out" --results results/planning_study \
    --episodes 50 --max-steps 250 "$@"

# Why: how far the searched noise moves the actions, and whether scores rank candidates as the demonstrator would.
wamkit record "${tasks[@]}" --output "$out/demonstrations" --episodes 6 --noise-std 0.1 --layout-seed 2042
python runs/planning_signal.py "$policy" --data "$out/demonstrations" --output results/planning_study/signal.json
