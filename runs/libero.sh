#!/usr/bin/env bash
# WAV small on LIBERO's ten libero_object tasks, from recording to its score: demonstrations of our scripts (nothing is
# downloaded but the scene assets, see README), training in three stages, closed loop from the stored initial states.
# About five hours on two cores; running it again continues where it stopped.
#
#   bash runs/libero.sh                           everything under outputs/libero
#   WAMKIT_LIBERO=/tmp/libero bash runs/libero.sh     somewhere else
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash runs/setup_extras.sh libero
export PATH="$PWD/.venv/bin:$PATH"

out="${WAMKIT_LIBERO:-outputs/libero}"
policy=zoo/wav-libero-object-small

wamkit record 'libero_object/*' --suite libero --output "$out/data" --episodes 50 --size 64 --noise-std 0.1 --max-steps 300
[ -e "$out/inspected" ] || { wamkit data inspect "$out/data" && touch "$out/inspected"; }
[ -e "$out/values_done" ] || { wamkit data values "$out/data" --image-size 0 && touch "$out/values_done"; }
wamkit train wav-libero-small --data.root "$out/data" --output "$out/train"

# The score is that of the folder in zoo/: bf16 weights, loaded from there alone. The low-cost rendering is the one that
# was recorded, and stands in the protocol's title.
[ -e "$policy/config.json" ] || wamkit export "$out/train/policy" --output "$policy" --dtype bfloat16
wamkit evaluate "$policy" --protocol libero/standard --rendering low_cost --output "$out/evaluation" \
    --tasks 'libero_object/*' --record-episodes 1
mkdir -p results/libero_object
cp "$out/evaluation/results.json" results/libero_object/results.json
wamkit report "$out/evaluation" --output "$out/report.html" --metrics "$out/train/metrics.jsonl" \
    --title "wav-libero-object-small"
printf '\n%s is ready; the page is %s\n' "$policy" "$out/report.html"
