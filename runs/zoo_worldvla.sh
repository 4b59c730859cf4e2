#!/usr/bin/env bash
# Make zoo/worldvla-metaworld-small: one WorldVLA for three Meta-World tasks, policy and world model, from recording to its
# score. Some hours on two cores; running it again continues where it stopped.
#
#   bash runs/zoo_worldvla.sh                               everything under outputs/worldvla, then the policy under zoo/
#   WAMKIT_ZOO=/tmp/worldvla bash runs/zoo_worldvla.sh      somewhere else
#   bash runs/zoo_worldvla.sh --precision bf16              settings of wamkit train; this one where the CPU computes in bf16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash runs/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

out="${WAMKIT_ZOO:-outputs/worldvla}"
policy=zoo/worldvla-metaworld-small
tasks=(drawer-open-v3 window-open-v3 button-press-topdown-v3)
settings=(--data.root "$out/data" --data.cache "$out/cache" --data.split train)

wamkit record "${tasks[@]}" --output "$out/data" --episodes 120 --noise-std 0.1 --video lossless
wamkit record door-open-v3 --output "$out/other" --episodes 12 --noise-std 0.1 --video lossless # a task that is never trained on
wamkit data encode worldvla-metaworld "${settings[@]}"
wamkit train worldvla-metaworld "${settings[@]}" --output "$out/train" "$@"

# The score is that of the folder in zoo/: bf16 weights, loaded from there alone. To replace the one that is there, remove it.
[ -e "$policy/config.json" ] || wamkit export "$out/train/policy" --output "$policy" --dtype bfloat16
wamkit evaluate "$policy" --output "$out/evaluation" --tasks "${tasks[@]}" --episodes 50 --workers 5 --record-episodes 1
cp "$out/evaluation/results.json" "$policy/results.json"
[ -e "$out/quality/quality.json" ] || wamkit quality "$policy" --data "$out/data" --split val_ind --output "$out/quality"
[ -e "$out/quality_other/quality.json" ] || wamkit quality "$policy" --data "$out/other" --split all --output "$out/quality_other"
mkdir -p results/worldvla_zoo
cp "$out/quality/quality.json" results/worldvla_zoo/val_ind.json
cp "$out/quality_other/quality.json" results/worldvla_zoo/other_task.json
cp "$out/quality/frames/episode_000108_gripperPOV.png" docs/images/worldvla_rollout.png
wamkit report "$out/evaluation" --quality "$out/quality" "$out/quality_other" --output "$out/report.html" \
    --metrics "$out/train/metrics.jsonl" --title "worldvla-metaworld-small"
printf '\n%s is ready; the page is %s\n' "$policy" "$out/report.html"
