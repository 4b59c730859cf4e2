#!/usr/bin/env bash
# Make zoo/wav-metaworld-small: one language-conditioned WAV for eight Meta-World tasks, from recording to its score.
# About two hours on two cores; running it again continues where it stopped.
#
#   bash runs/zoo_wav.sh                        everything under outputs/zoo, then the policy under zoo/
#   WAMKIT_ZOO=/tmp/zoo bash runs/zoo_wav.sh    somewhere else
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash runs/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

out="${WAMKIT_ZOO:-outputs/zoo}"
policy=zoo/wav-metaworld-small
named=(drawer-open-v3 door-open-v3 window-open-v3 button-press-topdown-v3 faucet-open-v3)
others=(push-v3 pick-place-v3 peg-insert-side-v3) # hard for so small a policy: reported, without a bar
all=("${named[@]}" "${others[@]}")

wamkit record "${all[@]}" --output "$out/data" --episodes 100 --noise-std 0.1
[ -e "$out/values_done" ] || { wamkit data values "$out/data" --image-size 0 && touch "$out/values_done"; }
wamkit train wav-metaworld-many --data.root "$out/data" --output "$out/train"

# The score is that of the folder in zoo/: bf16 weights, loaded from there alone.
[ -e "$policy/config.json" ] || wamkit export "$out/train/policy" --output "$policy" --dtype bfloat16
wamkit evaluate "$policy" --output "$out/evaluation" --tasks "${all[@]}" --episodes 50 --workers 5 --record-episodes 1
cp "$out/evaluation/results.json" "$policy/results.json"
wamkit report "$out/evaluation" --output "$out/report.html" --metrics "$out/train/metrics.jsonl" \
    --title "wav-metaworld-small"
printf '\n%s is ready; the page is %s\n' "$policy" "$out/report.html"
