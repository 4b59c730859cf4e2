#!/usr/bin/env bash
# The whole story on a laptop CPU: record demonstrations of a simulated robot opening a drawer, train a world-action model
# on them in three stages, run it in closed loop on layouts it has never seen, with and without planning, and make a page
# of it. Running it again continues where it stopped, and is quick when all is done.
#
#   bash runs/demo.sh            everything under outputs/demo; the page is outputs/demo/report.html
#   WAMKIT_DEMO=/tmp/demo bash runs/demo.sh     somewhere else
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash runs/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

out="${WAMKIT_DEMO:-outputs/demo}"
task=drawer-open-v3
episodes=25
mkdir -p "$out"

step() { # name, command...
    local started=$SECONDS
    printf '\n== %s\n' "$1"
    "${@:2}" </dev/null
    printf -- '-- %s took %d s\n' "$1" $((SECONDS - started))
}

evaluate() { # folder, planner options...
    wamkit evaluate "$out/train/policy" --output "$out/$1" --tasks $task --episodes $episodes --workers 5 \
        --record-episodes 2 "${@:2}"
}

planner=(--planner-iterations 2 --candidates 8 --value-samples 2)
started=$SECONDS
step "record" wamkit record $task --output "$out/data" --episodes 45 --noise-std 0.1
step "value targets" wamkit data values "$out/data" --image-size 0
step "train" wamkit train wav-metaworld --data.root "$out/data" --output "$out/train"
step "evaluate" evaluate plain
step "evaluate with planning" evaluate wav --planner wav "${planner[@]}"
step "evaluate the control (random scores)" evaluate shrink_only --planner shrink_only "${planner[@]}"
step "report" wamkit report "$out/plain" "$out/wav" "$out/shrink_only" --output "$out/report.html" \
    --metrics "$out/train/metrics.jsonl" --title "WAV opens a drawer"
printf '\nFrom recording to report: %d s. Open %s\n' $((SECONDS - started)) "$out/report.html"
