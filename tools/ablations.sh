#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train every network of the ablation table small and alike, and make the table of them.
#
#   tools/ablations.sh PACK MEAN RUNS HEAD...
#
# PACK is a training pack, MEAN a model or a run with a trained mean, RUNS the folder of all runs
# (the same command goes on where it stopped), each HEAD a high-resolution image that trained
# nothing. The table is RUNS/table/ablations.md. STEPS, SMALL (settings of every training) and
# NETWORK (those of the experts) make it larger, OPTIONS are further options of bids_moediff-train
# (OPTIONS=--smoke tries the script), JUDGE those of bids_moediff-evaluate ablations.
set -euo pipefail
cd "$(dirname "$0")/.."

pack=${1:?training pack} mean=${2:?model or run with a mean} runs=${3:?folder of the runs}
shift 3
: "${1:?heads to judge with}"
python=${PYTHON:-python3}
read -r -a small <<<"${SMALL:-crop=64 block=72 batch=8 stored_volumes=24 window=24 warm_up=50 \
validation_block=24 evaluate_every=200 save_every=100}"
read -r -a network <<<"${NETWORK:-network.width=32}"
read -r -a options <<<"--steps ${STEPS:-400} --device cpu ${OPTIONS:-}"
read -r -a judge <<<"${JUDGE:---block 64 --protocols x2iso-kspace}"
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$runs"

# train RECIPE RUN_WITH_THE_SAME_VOLUMES [option...]: volumes are degraded once, then linked.
train() {
  local recipe=$1 like=$2
  shift 2
  if [[ ! -d $runs/$recipe && $like != "$recipe" ]]; then
    mkdir "$runs/$recipe"
    cp -al "$runs/$like/volumes" "$runs/$recipe/volumes"
  fi
  echo "$recipe"
  "$python" -m bids_moediff.cli.train --recipe "$recipe" --pack "$pack" --output "$runs/$recipe" \
    "${options[@]}" --set "${small[@]}" "$@" >>"$runs/$recipe.log" 2>&1 ||
    { tail -n 3 "$runs/$recipe.log" >&2; exit 1; }
}

# scale RUN: what brings the latents of an autoencoder to a deviation of one.
scale() {
  "$python" - "$runs/$1/curve.jsonl" <<'PYTHON'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
print(f"network.latent_scale={1 / rows[-1]['losses']['deviation']:.4f}")
PYTHON
}

# The two starts see other volumes: with the mean's output, and without.
train experts experts "${network[@]}" --init "$mean"
for recipe in experts-single experts-slice-gate experts-2d; do
  train "$recipe" experts "${network[@]}" --init "$mean"
done
train experts-interpolation experts-interpolation "${network[@]}"
train experts-noise experts-interpolation "${network[@]}"
for latent in "kl autoencoder" "vq autoencoder-vq"; do
  read -r name coder <<<"$latent"
  train "$coder" experts-interpolation
  train "experts-$name" experts "${network[@]}" "$(scale "$coder")" --init "$mean" "$runs/$coder"
done

models=()
for name in single slice-gate kl vq interpolation noise 2d; do
  models+=("experts-$name=$runs/experts-$name/model")
done
"$python" -m bids_moediff.cli.evaluate ablations "$runs/table" --heads "$@" \
  --model "$runs/experts/model" --models "${models[@]}" "${judge[@]}" \
  --questions mixture gate latent start slices
