#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train one stage in a given number of minutes on a GPU machine that has PyTorch, but neither the
# data nor the imaging libraries. Everything comes from a training pack, made elsewhere with
#   bids_moediff-train --data BIDS_DIR... --pack-only pack.npz --max-megabytes 55
#
#   tools/gpu_session.sh mean     PACK OUT MINUTES
#   tools/gpu_session.sh experts  PACK OUT MINUTES MEAN_MODEL
#   tools/gpu_session.sh student  PACK OUT MINUTES MOEDIFF_MODEL
#   tools/gpu_session.sh benchmark PACK OUT           steps a second of every stage
#
# A first trial of TRIAL (60) steps tells how many steps fit; OUT gets the model folder (fp16 safetensors,
# card, curve) and the log. RUNS (default: a temporary folder) keeps the states, which another
# call with the same RUNS and MINUTES goes on from. OPTIONS are further options of
# bids_moediff-train (OPTIONS="--smoke --device cpu" tries the script without a GPU).
set -euo pipefail
cd "$(dirname "$0")/.."

stage=${1:?stage} pack=${2:?pack} out=${3:?output folder} minutes=${4:-8} init=${5:-}
runs=${RUNS:-$(mktemp -d)}
python=${PYTHON:-python3} tried=${TRIAL:-60}
read -r -a options <<<"${OPTIONS:-}"
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out" "$runs"

# Larger batches and patches, and always new volumes: the GPU makes them faster than it reads them.
settings() {
  case $1 in
    mean) echo batch=24 patch=64 window=24 steps_per_volume=3 workers=3 decay=0.9995 ;;
    experts) echo batch=32 block=168 window=24 steps_per_volume=2 stored_volumes=0 workers=3 ;;
    student) echo batch=16 window=24 steps_per_volume=2 stored_volumes=0 workers=3 ;;
    *) echo "unknown stage $1" >&2; exit 2 ;;
  esac
}

# train STAGE RUN_DIR STEPS [option...]
train() {
  local recipe=$1 folder=$2 steps=$3
  shift 3
  local every=$((steps / 8 > 0 ? steps / 8 : 1))
  # shellcheck disable=SC2046  # the settings are words
  "$python" -m bids_moediff.cli.train --recipe "$recipe" --pack "$pack" --output "$folder" \
    ${init:+--init "$init"} --set $(settings "$recipe") "${options[@]}" --steps "$steps" \
    --set evaluate_every="$every" save_every="$every" "$@"
}

# Seconds that a run took, without its validations.
seconds() {
  "$python" - "$1/state.safetensors" <<'PYTHON'
import json, sys
from safetensors import safe_open
with safe_open(sys.argv[1], "pt") as archive:
    print(json.loads(archive.metadata()["record"])["seconds"])
PYTHON
}

trial() {
  rm -rf "$runs/trial-$1"
  train "$1" "$runs/trial-$1" "$tried" --set evaluate_every=1000 >"$out/trial-$1.log" 2>&1 ||
    { tail -n 5 "$out/trial-$1.log" >&2; exit 1; }
  seconds "$runs/trial-$1"
}

if [ "$stage" = benchmark ]; then
  took=$(trial mean)
  echo "mean: $("$python" -c "print(round($tried / $took, 2))") steps a second, validation included"
  init=$runs/trial-mean/model
  took=$(trial experts)
  echo "experts: $("$python" -c "print(round($tried / $took, 2))") steps a second"
  init=$runs/trial-experts/model
  took=$(trial student)
  echo "student: $("$python" -c "print(round($tried / $took, 2))") steps a second"
  exit 0
fi

if [ -f "$runs/$stage.steps" ]; then
  steps=$(cat "$runs/$stage.steps")
else
  took=$(trial "$stage")
  # A tenth is kept for validations and for writing.
  steps=$("$python" -c "print(max(8, int($tried / $took * 0.9 * 60 * $minutes)))")
  echo "$steps" >"$runs/$stage.steps"
fi
echo "$stage: $steps steps in $minutes minutes"
train "$stage" "$runs/$stage" "$steps" 2>&1 | tee "$out/$stage.log" | tr '\r' '\n' | grep -v '^$' | tail -n 40
mkdir -p "$out/$stage"
cp "$runs/$stage/model/"* "$out/$stage/"
ls -l "$out/$stage"
