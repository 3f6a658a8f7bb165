# shellcheck shell=sh
# SPDX-License-Identifier: Apache-2.0
# submit.sh puts a copy of this, after what it was told, into the folder of each submission.
# Apptainer's --containall lets pass nothing of a job's environment but what bears its prefix.
for name in CUDA_VISIBLE_DEVICES SLURM_JOB_ID SLURM_CPUS_PER_TASK SLURM_MEM_PER_NODE \
    SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_GPUS_ON_NODE; do
    value=$(printenv "$name") && export "APPTAINERENV_$name=$value"
done
participants() { # COUNT [option...]: the participant level, for the COUNT of this task of the array
    count=$1 last=$((SLURM_ARRAY_TASK_ID * $1))
    shift
    # shellcheck disable=SC2046,SC2154
    level_participant "$@" \
        --participant-label $(sed -n "$((last - count + 1)),${last}p" "$list")
}
