#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Run the scripts of examples/slurm on a SLURM of one node, started here, with a fake GPU.
#
#   tools/slurm_test.sh [WORK]       needs root, slurm-wlm and munge, and bids_moediff on the PATH
#
# Two copies of the demo head go through the arrays and through the Nipype plugin; the outputs must
# be the same bytes as those of a plain run.
set -eu
cd "$(dirname "$0")/.."
work=$(mkdir -p "${1:-/tmp/slurm-test}" && cd "${1:-/tmp/slurm-test}" && pwd)
started=$(date +%s)
say() { echo "[$(($(date +%s) - started)) s] $*"; }
cores=$(nproc)
memory=$(awk '/MemTotal/ {print int($2 / 1024) - 1000}' /proc/meminfo)

start_slurm() {
    mkdir -p "$work/slurm/state" "$work/slurm/spool"
    cat > "$work/slurm/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
ReturnToService=2
MpiDefault=none
StateSaveLocation=$work/slurm/state
SlurmdSpoolDir=$work/slurm/spool
SlurmctldPidFile=$work/slurm/slurmctld.pid
SlurmdPidFile=$work/slurm/slurmd.pid
SlurmctldLogFile=$work/slurm/slurmctld.log
SlurmdLogFile=$work/slurm/slurmd.log
NodeName=localhost NodeAddr=127.0.0.1 Gres=gpu:1 CPUs=$cores RealMemory=$memory
PartitionName=debug Nodes=localhost Default=YES MaxTime=INFINITE State=UP
CONF
    echo 'NodeName=localhost Name=gpu File=/dev/zero' > "$work/slurm/gres.conf"
    export SLURM_CONF="$work/slurm/slurm.conf"
    # munged refuses to run as root; it may be running already.
    if ! munge -n > /dev/null 2>&1; then
        mkdir -p /run/munge && chown munge /run/munge
        setpriv --reuid munge --regid munge --clear-groups munged
    fi
    slurmctld -D > /dev/null 2>&1 &
    controller=$!
    slurmd -D > /dev/null 2>&1 &
    node=$!
    trap 'kill $controller $node 2> /dev/null' EXIT
    for _ in $(seq 30); do
        [ "$(sinfo -h -o %T 2> /dev/null)" = idle ] && return
        sleep 1
    done
    echo "SLURM does not come up, see $work/slurm/*.log" >&2
    exit 1
}

wait_for_jobs() {
    while [ -n "$(squeue -h 2> /dev/null)" ]; do sleep 2; done
}

compare() {
    ( cd "$1" && find . -type f ! -path './logs/*' ! -path './.work/*' ! -name '*.html' \
        ! -name '*.svg' -exec sha256sum {} + | sort -k 2 ) > "$work/$2.sha256"
    say "$2: $(wc -l < "$work/$2.sha256") files"
    diff "$work/plain.sha256" "$work/$2.sha256"
}

rm -rf "$work/data" "$work"/out-* "$work"/work-*
cp -r bids_moediff/data/demo "$work/data"
cp -r "$work/data/sub-01" "$work/data/sub-02"
for file in "$work"/data/sub-02/anat/*; do
    mv "$file" "$(echo "$file" | sed 's#/sub-01_#/sub-02_#')"
done
options="--output-resolution 1 --device cpu --omp-nthreads 1"
printf 'sub-02\tn/a\n' >> "$work/data/participants.tsv"

say "plain run"
# shellcheck disable=SC2086
bids_moediff "$work/data" "$work/out-plain" participant $options -w "$work/work-plain"
bids_moediff "$work/data" "$work/out-plain" group
compare "$work/out-plain" plain

start_slurm
say "SLURM $(sinfo --version) is up with $(sinfo -h -o '%c cores, %m MB, %G')"
# The examples ask for more than a small test machine has.
fits="--cpus-per-task=$((cores > 1 ? cores / 2 : 1)) --mem=$((memory / 3))"
# shellcheck disable=SC2086
PER_GPU=1 CPU_OPTIONS="$fits" GPU_OPTIONS="$fits" \
    sh examples/slurm/submit.sh "$work/data" "$work/out-arrays" "$work/work-arrays" $options
wait_for_jobs
compare "$work/out-arrays" arrays

sed "s/--cpus-per-task=2 --mem=8G/$fits/" examples/slurm/plugin.yml > "$work/plugin.yml"
# The Nipype plugin wants to know whose jobs to look for.
export LOGNAME="${LOGNAME:-$(id -un)}"
# shellcheck disable=SC2086
bids_moediff "$work/data" "$work/out-plugin" participant $options -w "$work/work-plugin" \
    --use-plugin "$work/plugin.yml"
bids_moediff "$work/data" "$work/out-plugin" group
compare "$work/out-plugin" plugin
say "all done"
