#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train the networks in given times on a GPU machine that has PyTorch, but neither the data nor the
# imaging libraries. Everything comes from a training pack, made elsewhere with
#   bids_moediff-train --data BIDS_DIR... --pack-only pack.npz --max-megabytes 55
# Training needs no shipped weights, and the tree without them and the demo (8 MB) fits into 64 MiB
# beside the pack (the whole tree, 63 MB, fits alone, for infer):
#   git archive HEAD -- . ':!*.safetensors' ':!bids_moediff/data/demo' | tar x -C TREE
#
#   tools/gpu_session.sh mean PACK RUNS MINUTES
#   tools/gpu_session.sh rest PACK RUNS MINUTES    experts, student and undistilled student at once
#   tools/gpu_session.sh infer RUNS                measure the shipped models (needs nibabel, scipy)
#
# infer writes speed.md (seconds and peak memory of a whole head of 192 x 240 x 240 voxels) and
# agreement.txt (difference from the processor's image in 32 bits, and whether it is within bounds)
# to RUNS; it ends with 1 if it is not. It takes a few minutes, most of them on the processor.
# RUNS keeps states, curves, logs and models; another call with the same RUNS goes on from there.
# OPTIONS are further options of bids_moediff-train (OPTIONS="--smoke --device cpu" tries the
# script without a GPU).
set -euo pipefail
cd "$(dirname "$0")/.."

stage=${1:?stage}
python=${PYTHON:-python3}
read -r -a options <<<"${OPTIONS:-}"
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if [ "$stage" = infer ]; then
  runs=${2:?folder of the runs}
  mkdir -p "$runs"
  # Tried on a processor with INFER="--device cpu" and a small head, SPEED="--sizes 24".
  read -r -a infer <<<"${INFER:---device cuda}"
  read -r -a speed <<<"${SPEED:---whole --sizes 96}"
  "$python" -m research.measurements.speed "${infer[@]}" "${speed[@]}" | tee "$runs/speed.md"
  "$python" -m research.measurements.agreement "${infer[@]}" "${options[@]}" |
    tee "$runs/agreement.txt"
  exit
fi
pack=${2:?pack} runs=${3:?folder of the runs} minutes=${4:?minutes}
mkdir -p "$runs"

# train RECIPE [option...]
train() {
  local recipe=$1
  shift
  "$python" -m research.train --recipe "$recipe" --pack "$pack" --output "$runs/$recipe" \
    --minutes "$minutes" "${options[@]}" "$@" >"$runs/$recipe.log" 2>&1
}

case $stage in
mean) train mean || status=$? ;;
rest)
  # Three networks keep a large GPU busy: the experts alone wait for the processor.
  train experts --init "$runs/mean" &
  train student --init "$runs/mean" &
  train student-undistilled &
  for job in $(jobs -p); do wait "$job" || status=$?; done
  ;;
*)
  echo "unknown stage $stage" >&2
  exit 2
  ;;
esac
for log in "$runs"/*.log; do
  echo "$log"
  tr '\r' '\n' <"$log" | grep -E 'steps fit|SHA-256|rror|^bids_moediff' || true
  tr '\r' '\n' <"$log" | grep '^step ' | tail -n 8 || true
done
exit "${status:-0}"
