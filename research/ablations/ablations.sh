#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train every network of the ablation table small and alike, and make the table of them.
#
#   research/ablations/ablations.sh PACK MEAN RUNS HEAD...
#
# PACK is a training pack, MEAN a model or a run with a trained mean, RUNS the folder of all runs
# (the same command goes on where it stopped), each HEAD a high-resolution image that trained
# nothing. The table is RUNS/table/ablations.md.
#
# All networks but one start from the interpolated input, so that there is something to be learned,
# and learn one acquisition (x2 isotropic, no noise) without noise in their state and by the
# fidelity of the mixture alone, so that single networks and mixtures learn by the same loss
# (research/ablations/README.md). STEPS, CODER_STEPS (those of the
# autoencoders, of which each takes ten times as long), SMALL (settings of every training) and
# NETWORK (those of the experts) make it larger, OPTIONS are further options of bids_moediff-train
# (OPTIONS=--smoke tries the script), JUDGE those of python -m research.ablations.command. Two trainings
# run at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."

pack=${1:?training pack} mean=${2:?model or run with a mean} runs=${3:?folder of the runs}
shift 3
: "${1:?heads to judge with}"
python=${PYTHON:-python3}
read -r -a small <<<"${SMALL:-crop=64 block=80 batch=8 stored_volumes=32 window=32 warm_up=50 \
precision=fp32 learning_rate=1e-3 validation_block=48 evaluate_every=1000 save_every=100}"
read -r -a network <<<"${NETWORK:-network.width=16}"
network+=(losses.fidelity_fraction=1 losses.experts=0 losses.gating=0 losses.tissue=0)
input=("${network[@]}" network.start=low_resolution)
steps=${STEPS:-2000} coder_steps=${CODER_STEPS:-400}
read -r -a options <<<"--device cpu ${OPTIONS:-}"
read -r -a judge <<<"${JUDGE:---block 64 --protocols x2iso-kspace}"
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$runs"

# train STEPS NAME RECIPE [option...]
train() {
  local count=$1 name=$2 recipe=$3
  shift 3
  echo "$name"
  "$python" -m research.train --recipe "$recipe" --pack "$pack" --output "$runs/$name" \
    --steps "$count" "${options[@]}" --set "acquisition=x2 isotropic" "${small[@]}" "$@" \
    >>"$runs/$name.log" 2>&1 || { tail -n 3 "$runs/$name.log" >&2; return 1; }
}

# scale RUN: what brings the latents of an autoencoder to a deviation of one.
scale() {
  "$python" - "$runs/$1/curve.jsonl" <<'PYTHON'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
print(f"network.latent_scale={1 / rows[-1]['losses']['deviation']:.4f}")
PYTHON
}

latent() {
  local name=$1 coder=$2
  train "$coder_steps" "$coder" "$coder" &&
    train "$steps" "experts-$name" "experts-$name" "${input[@]}" "$(scale "$coder")" --init "$runs/$coder"
}

{
  train "$steps" experts experts "${input[@]}"
  for name in single slice-gate 2d; do
    train "$steps" "experts-$name" "experts-$name" "${input[@]}"
  done
} &
first=$!
{
  latent kl autoencoder
  latent vq autoencoder-vq
  train "$steps" experts-on-mean experts "${network[@]}" --init "$mean"
  train "$steps" experts-noise experts-noise "${network[@]}"
} &
second=$!
wait "$first" && wait "$second"

models=()
for name in single slice-gate kl vq noise 2d on-mean; do
  models+=("experts-$name=$runs/experts-$name/model")
done
"$python" -m research.ablations.command "$runs/table" --heads "$@" \
  --model "$runs/experts/model" --models "${models[@]}" "${judge[@]}" \
  --questions mixture gate latent start slices other
