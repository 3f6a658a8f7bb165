#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A whole data set on SLURM: prepare on CPU nodes, super-resolve on GPU nodes, then report.
#
#   APP='apptainer run --nv --containall --no-home -B /data:/data:ro -B /out -B /scratch app.sif' \
#       examples/slurm/submit.sh BIDS_DIR OUTPUT_DIR WORK_DIR [options of bids_moediff]
#
# APP        how the app is called (default: bids_moediff)
# PER_GPU    participants in one GPU job (default: 20)
# CPU_OPTIONS, GPU_OPTIONS   further options of sbatch, such as --partition or --account
#
# WORK_DIR must be seen by all nodes: what one stage leaves there the next one takes up. A failed
# participant stops nobody else; run the same line again to finish what is missing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
BIDS_DIR=$1 OUTPUT_DIR=$2 WORK_DIR=$3
shift 3
OPTIONS=$*
APP=${APP:-bids_moediff}
PER_GPU=${PER_GPU:-20}
mkdir -p "$WORK_DIR" "$OUTPUT_DIR/logs/slurm"
LIST=$WORK_DIR/participants.txt
(cd "$BIDS_DIR" && find -L . -mindepth 1 -maxdepth 1 -type d -name 'sub-*') \
    | sed 's#^\./##' | sort > "$LIST"
count=$(wc -l < "$LIST")
[ "$count" -gt 0 ] || { echo "no sub-* folder in $BIDS_DIR" >&2; exit 66; }
jobs=$(((count + PER_GPU - 1) / PER_GPU))
export BIDS_DIR OUTPUT_DIR WORK_DIR OPTIONS APP PER_GPU LIST

log="--output=$OUTPUT_DIR/logs/slurm/%x-%A_%a.log"
# shellcheck disable=SC2086
preproc=$(sbatch --parsable $log --array="1-$count" ${CPU_OPTIONS:-} "$here/preproc.sbatch")
# shellcheck disable=SC2086
superres=$(sbatch --parsable $log --array="1-$jobs" --dependency="afterany:$preproc" \
    ${GPU_OPTIONS:-} "$here/superres.sbatch")
# shellcheck disable=SC2086
report=$(sbatch --parsable $log --array=1 --dependency="afterany:$superres" \
    ${CPU_OPTIONS:-} "$here/report.sbatch")
echo "$count participants: preparation $preproc, super-resolution $superres, reports $report"
