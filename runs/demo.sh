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
mkdir -p "$out/seconds"

# Runs a step and keeps its time in $out/seconds. Only a step that was done in one go has a time (else null), and doing it
# again, which takes a moment, does not change it.
step() { # name, command...
    local started=$SECONDS file="$out/seconds/$1" is_first=""
    [ -e "$file" ] || { is_first=yes && echo null >"$file"; }
    printf '\n== %s\n' "$1"
    "${@:2}" </dev/null
    [ -z "$is_first" ] || echo $((SECONDS - started)) >"$file"
    printf -- '-- %s took %d s\n' "$1" $((SECONDS - started))
}

# Exit status 1 with results means that the simulator lost episodes: the page is made all the same, and shows it.
lost=""
evaluate() { # folder, planner options...
    local status=0
    wamkit evaluate "$out/train/policy" --output "$out/$1" --tasks $task --episodes $episodes --workers 5 \
        --record-episodes 2 "${@:2}" || status=$?
    [ $status -ne 0 ] || return 0
    [ $status -eq 1 ] && [ -e "$out/$1/results.json" ] || return $status
    lost+=" $1"
}

demo() {
    local planner=(--planner-iterations 2 --candidates 8 --value-samples 2)
    step "record" wamkit record $task --output "$out/data" --episodes 45 --noise-std 0.1
    step "value targets" wamkit data values "$out/data" --image-size 0
    step "train" wamkit train wav-metaworld --data.root "$out/data" --output "$out/train"
    step "evaluate" evaluate plain
    step "evaluate with planning" evaluate wav --planner wav "${planner[@]}"
    step "evaluate the control (random scores)" evaluate shrink_only --planner shrink_only "${planner[@]}"
    step "report" wamkit report "$out/plain" "$out/wav" "$out/shrink_only" --output "$out/report.html" \
        --metrics "$out/train/metrics.jsonl" --title "WAV opens a drawer"
}

step "from recording to report" demo

comma=""
for file in "$out"/seconds/*; do
    printf '%s"%s": %s' "$comma" "${file##*/}" "$(cat "$file")"
    comma=", "
done | { printf '{' && cat && printf '}\n'; } >"$out/seconds.json"
[ -z "$lost" ] || printf '\nThe simulator lost episodes in:%s. Run this again to try those.\n' "$lost"
printf '\nOpen %s\n' "$out/report.html"
