#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Run the scripts of examples/slurm on a SLURM of one node, started here, with a fake GPU (a line
# in its configuration, no device), and 20 jobs at once into one folder.
#
#   tools/slurm_test.sh [WORK]   needs root, slurm-wlm and munge, and bids_moediff on the PATH
#   DATA=BIDS_DIR                data set to take coarse copies of (default: the demo)
#   MANY=20                      participants of the second part, as many jobs at once
#
# First part: coarse copies of the T1w images of DATA go through the three arrays and, node by
# node, through the Nipype plugin; the outputs must be the same bytes as those of a plain run.
# Second part: many participants, one job each, all at once; the output folder is watched the
# whole time by tools/watch_dataset.py; each must have the files that the plain run made of its head.
# The node says that it has more processors than the machine, so that all jobs run at once.
set -eu
cd "$(dirname "$0")/.."
work=$(mkdir -p "${1:-/tmp/slurm-test}" && cd "${1:-/tmp/slurm-test}" && pwd)
data=${DATA:-bids_moediff/data/demo}
many=${MANY:-20}
started=$(date +%s)
say() { echo "[$(($(date +%s) - started)) s] $*"; }
memory=$(awk '/MemTotal/ {print int($2 / 1024) - 1000}' /proc/meminfo)
share="--cpus-per-task=1 --mem=$((memory / (many + 1)))"
options="--device cpu --nprocs 1 --omp-nthreads 1"

start_slurm() {
    rm -rf "$work/slurm"
    PROCESSORS=$((many + 2)) sh tools/local_slurm.sh "$work/slurm" > "$work/slurm.log" &
    slurm=$!
    trap 'touch "$work/stop"; kill $slurm 2> /dev/null' EXIT
    trap exit HUP INT TERM  # a shell that a signal ends need not do what it has to do at its exit
    export SLURM_CONF="$work/slurm/slurm.conf"
    for _ in $(seq 60); do
        ! grep -q ready "$work/slurm.log" || return 0
        sleep 1
    done
    echo "SLURM does not come up, see $work/slurm/*.log" >&2
    exit 1
}

wait_for_jobs() {
    while [ -n "$(squeue -h 2> /dev/null)" ]; do sleep 2; done
}

app() { # DATA OUTPUT LEVEL [option...]
    # shellcheck disable=SC2086
    bids_moediff "$@" $options > "$work/app.log" 2>&1 || { tail -n 20 "$work/app.log"; exit 1; }
}

plain_run() { # DATA OUTPUT
    app "$1" "$2" participant --output-resolution 4 -w "$2.work"
    app "$1" "$2" group
}

compare() {
    python3 tools/compare_outputs.py "$1" "$2"
    say "$(basename "$2"): the same bytes as $(basename "$1")"
}

valid() {
    command -v bids-validator-deno > /dev/null || { say "no bids-validator-deno"; return; }
    bids-validator-deno "$1" > "$work/validator.log" || { cat "$work/validator.log"; exit 1; }
    say "$(basename "$1"): valid by the BIDS validator"
}

make_many() { # the coarse images again and again under new names, noted in $copies
    mkdir -p "$work/many"
    cp "$work/data/dataset_description.json" "$work/many/"
    copies=
    set -- "$work"/data/sub-*/anat/*_T1w.nii.gz
    for number in $(seq "$many"); do
        label=$(printf 'sub-%03d' "$number")
        mkdir -p "$work/many/$label/anat"
        cp "$1" "$work/many/$label/anat/${label}_T1w.nii.gz"
        cp "${1%.nii.gz}.json" "$work/many/$label/anat/${label}_T1w.json"
        source=${1#"$work/data/sub-"}
        copies="$copies ${source%%/*}=${label#sub-}"
        first=$1; shift; set -- "$@" "$first"
    done
}

rm -rf "$work/data" "$work/many" "$work/stop" "$work"/out-* "$work"/work-*
bids_moediff-degrade "$data" "$work/data" --modalities T1w --resolution 5 --profile gaussian \
    > "$work/degrade.log" 2>&1 || { cat "$work/degrade.log"; exit 1; }
participants=$(find "$work/data" -maxdepth 1 -name 'sub-*' | wc -l)
say "coarse copies of $participants participants"
plain_run "$work/data" "$work/out-plain"
say "plain run"
valid "$work/out-plain"

start_slurm
say "$(sinfo --version) is up with $(sinfo -h -o '%c processors, %m MB, %G'), the GPU a fake"
# The examples ask for more than a small test machine has.
# shellcheck disable=SC2086
PER_GPU=2 CPU_OPTIONS=$share GPU_OPTIONS=$share \
    sh examples/slurm/submit.sh "$work/data" "$work/out-arrays" "$work/work-arrays" \
    --output-resolution 4 $options
wait_for_jobs
compare "$work/out-plain" "$work/out-arrays"

sed "s/--cpus-per-task=2 --mem=8G/$share/" examples/slurm/plugin.yml > "$work/plugin.yml"
# The Nipype plugin wants to know whose jobs to look for.
export LOGNAME="${LOGNAME:-$(id -un)}"
app "$work/data" "$work/out-plugin" participant --output-resolution 4 -w "$work/work-plugin" \
    --use-plugin "$work/plugin.yml"
app "$work/data" "$work/out-plugin" group
say "the Nipype plugin sent $(find "$work/slurm" -name '*.log' -exec cat {} + \
    | grep -c '_slurm_rpc_submit_batch_job') jobs in all"
compare "$work/out-plain" "$work/out-plugin"

make_many
python3 tools/watch_dataset.py "$work/out-many" "$work/stop" > "$work/watch.log" 2>&1 &
watcher=$!
before=$(date +%s)
# shellcheck disable=SC2086,SC2016
jobs=$(sbatch --parsable $share --array="1-$many" --output="$work/slurm/many-%a.log" --wrap "
    exec bids_moediff $work/many $work/out-many participant --output-resolution 4 $options \
    --participant-label \$(printf '%03d' \$SLURM_ARRAY_TASK_ID)")
most=0
while [ -n "$(squeue -h 2> /dev/null)" ]; do
    running=$(squeue -h -r -t running | wc -l)
    [ "$running" -le "$most" ] || most=$running
    sleep 1
done
say "job array $jobs: $many jobs, up to $most at once, $(($(date +%s) - before)) s"
app "$work/many" "$work/out-many" group
touch "$work/stop"
wait "$watcher" || { cat "$work/watch.log"; exit 1; }
say "$(tail -n 1 "$work/watch.log" | sed 's#.*/##')"
valid "$work/out-many"
# shellcheck disable=SC2086
python3 tools/compare_outputs.py --participants $copies "$work/out-plain" "$work/out-many"
[ "$(wc -l < "$work/out-many/group_T1w.tsv")" = $((many + 1)) ]
say "all done"
