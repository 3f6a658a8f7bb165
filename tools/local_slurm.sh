#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A SLURM of one node on this machine, with a fake GPU, until this script is ended.
#
#   tools/local_slurm.sh FOLDER [line of slurm.conf...]     needs root, slurm-wlm and munge
#
# Writes FOLDER/slurm.conf (export SLURM_CONF=FOLDER/slurm.conf) and prints "ready" when the node is
# idle. PROCESSORS is what the node says it has (default 22), more than there need be, so that many
# jobs run at once. A job above its memory is killed, as control groups do on a cluster. What became
# of a job can be asked for ten hours: on a busy machine the jobs behind it may take long.
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
memory=$(awk '/MemTotal/ {print int($2 / 1024) - 1000}' /proc/meminfo)
port=${SLURM_TEST_PORT:-26817}
mkdir -p "$folder/state" "$folder/spool"
cat > "$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
MinJobAge=36000
MpiDefault=none
SlurmctldPort=$port
SlurmdPort=$((port + 1))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=localhost NodeAddr=127.0.0.1 Gres=gpu:1 CPUs=${PROCESSORS:-22} RealMemory=$memory
PartitionName=debug Nodes=localhost Default=YES MaxTime=INFINITE State=UP
CONF
printf '%s\n' "$@" >> "$folder/slurm.conf"
echo 'NodeName=localhost Name=gpu File=/dev/zero' > "$folder/gres.conf"
export SLURM_CONF="$folder/slurm.conf"
# munged refuses to run as root; it may be running already.
if ! munge -n > /dev/null 2>&1; then
    mkdir -p /run/munge && chown munge /run/munge
    setpriv --reuid munge --regid munge --clear-groups munged
fi
slurmctld -D > /dev/null 2>&1 &
controller=$!
slurmd -D > /dev/null 2>&1 &
node=$!
trap 'timeout 5 scancel --full --state=RUNNING --user="$(id -un)" 2> /dev/null || true
    kill -KILL $controller $node 2> /dev/null || true' EXIT
trap exit TERM INT
for _ in $(seq 60); do
    if [ "$(sinfo -h -o %T 2> /dev/null)" = idle ]; then
        echo ready
        wait
        exit
    fi
    sleep 0.5
done
echo "SLURM does not come up, see $folder/*.log" >&2
exit 1
