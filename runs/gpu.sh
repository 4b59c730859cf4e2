#!/usr/bin/env bash
# What only a GPU can show, in one go: the tests marked `gpu`, a full-size control step and full-size training in bf16.
#
#   bash runs/gpu.sh OUT           # random weights, no data and no downloads needed; JSON and logs go to OUT
#   bash runs/gpu.sh OUT --trial   # the same steps at `tiny` on a CPU, to try the script itself
#
#   WAMKIT_PYTHON=/path/to/python  use this Python, which has torch for the GPU; .venv's or python3 unless told
#   WAMKIT_BATCH=32                windows per training step (16 unless told)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:?"usage: bash runs/gpu.sh OUT [--trial]"}
python=${WAMKIT_PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    [ -x .venv/bin/python ] && python=$PWD/.venv/bin/python
fi
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$out"
failed=()

step() { # name, seconds allowed, command...
    printf '\n== %s\n' "$1"
    timeout "$2" "${@:3}" </dev/null 2>&1 | tee "$out/$1.log" || failed+=("$1")
}

if [ "${2:-}" = --trial ]; then
    device=(--device cpu --precision fp32)
    size=tiny batch=4 repeats=3
else
    device=(--device cuda --precision bf16)
    size=libero batch=${WAMKIT_BATCH:-16} repeats=10
    step machine 60 nvidia-smi
fi

step tests 300 "$python" -m pytest -q -m gpu tests/training/test_gpu.py tests/recipes/test_gpu_recipes.py
step control_step 300 "$python" benchmarks/control_step.py --size "$size" "${device[@]}" --iterations 0 3 \
    --repeats "$repeats" --output "$out/control_step.json"
for stage in action_full video_only; do
    step "train_$stage" 300 "$python" benchmarks/train.py --size "$size" "${device[@]}" --stage "$stage" \
        --batch "$batch" --steps "$repeats" --output "$out/train_$stage.json"
done

if [ ${#failed[@]} -gt 0 ]; then
    printf '\nFailed: %s\n' "${failed[*]}" >&2
    exit 1
fi
printf '\nResults are in %s\n' "$out"
