#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A whole data set on SLURM: prepare on CPU nodes, super-resolve on GPU nodes, report, then the group.
#
#   APP='apptainer run --nv --containall --no-home -B /data:/data:ro -B /out -B /scratch app.sif' \
#       examples/slurm/submit.sh BIDS_DIR OUTPUT_DIR WORK_DIR [options of bids_moediff]
#
# APP        the app as you would type it in a shell, quotes included (default: bids_moediff)
# PER_TASK   participants in one task of the preparation and of the reports (default: 1)
# PER_GPU    participants in one GPU task (default: 20)
# CPU_OPTIONS, GPU_OPTIONS   further options of sbatch, such as --partition or --account
# ONLY_UNFINISHED=1          submit only whom the last group level found failed or missing
# CHECK=0                    do not try the options first, where the app runs on the nodes only
#
# --participant-label and --exclude-participant-label choose who gets a task; all other options go
# to every task. Where SLURM does not take arrays of that size, tasks get more participants.
# WORK_DIR must be seen by all nodes: each stage takes up what the last one left there. A failed
# participant stops nobody else. Lists and logs of a submission are in OUTPUT_DIR/logs/slurm.
set -eu
# With CDPATH cd goes elsewhere, and prints where. The memory of a job that calls this script is
# not that of the jobs it submits. With SBATCH_ARRAY_INX the group would be an array too.
unset CDPATH SLURM_MEM_PER_NODE SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SBATCH_ARRAY_INX SBATCH_WAIT
here=$(cd "$(dirname "$0")" && pwd)
stop() { echo "submit.sh: $2" >&2; exit "$1"; }
sort() { LC_ALL=C command sort "$@"; }
comm() { LC_ALL=C command comm "$@"; }
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }  # as a shell reads it back
labels() { # words, separated by spaces or commas, as sorted lines sub-LABEL
    printf '%s' "$1" | tr -s ', ' '\n' | sed -e '/^$/d' -e 's/^sub-//' -e 's/^/sub-/' | sort -u
}

[ $# -ge 3 ] || stop 2 'the call is submit.sh BIDS_DIR OUTPUT_DIR WORK_DIR [options of bids_moediff]'
for word in "$3" "${4:-}"; do
    case $word in
    participant | group) stop 2 "leave out $word: submit.sh BIDS_DIR OUTPUT_DIR WORK_DIR" ;;
    esac
done
[ -d "$1" ] || stop 2 "the input folder $1 does not exist"
case $2 in *\\* | *'
'*) stop 2 "$2: sbatch takes no backslash and no line break here; rename the output folder" ;; esac
for number in "${PER_TASK:-1}" "${PER_GPU:-20}"; do
    case $number in
    *[!0-9]* | 0*) stop 2 "PER_TASK, PER_GPU: $number is not a number of participants" ;;
    esac
done
mkdir -p "$2/logs/slurm" "$3" || stop 2 'the output folder and the work folder must be writable'
bids_dir=$(cd "$1" && pwd) output_dir=$(cd "$2" && pwd) work_dir=$(cd "$3" && pwd)
shift 3

asked=${BIDS_MOEDIFF_PARTICIPANT_LABEL:-} excluded=${BIDS_MOEDIFF_EXCLUDE_PARTICIPANT_LABEL:-}
unset BIDS_MOEDIFF_PARTICIPANT_LABEL BIDS_MOEDIFF_EXCLUDE_PARTICIPANT_LABEL
options='' reading='' previous='' config='' chosen='' left_out=''
for word in "$@"; do
    case $word in
    -h | --help | --version | --print-config | --check | --dry-run)
        stop 2 "leave out $word: call the app itself for that"
        ;;
    --stage | --stage=*) stop 2 'leave out --stage: the jobs run all stages' ;;
    -w | --work[-_]dir | --work[-_]dir=*) stop 2 "leave out $word: WORK_DIR is the third word" ;;
    --participant[-_]label) reading=asked asked='' chosen=yes ;;
    --exclude-participant[-_]label) reading=excluded excluded='' left_out=yes ;;
    --participant[-_]label=*) reading='' asked=${word#*=} chosen=yes ;;
    --exclude-participant[-_]label=*) reading='' excluded=${word#*=} left_out=yes ;;
    -*) reading='' options="$options $(quoted "$word")" ;;
    *)
        case $reading in
        asked) asked="$asked $word" ;;
        excluded) excluded="$excluded $word" ;;
        *) options="$options $(quoted "$word")" ;;
        esac
        ;;
    esac
    case "$previous $word" in
    '--config-file '*) config=$word ;;
    *' --config-file='*) config=${word#*=} ;;
    esac
    previous=$word
done
# An empty choice is a mistake of the caller's script: it must not start everybody.
[ -z "$chosen" ] || [ -n "$(labels "$asked")" ] || stop 2 '--participant-label: no label is given'
[ -z "$left_out" ] || [ -n "$(labels "$excluded")" ] \
    || stop 2 '--exclude-participant-label: no label is given'
if [ -n "$config" ]; then
    [ -r "$config" ] || stop 2 "the settings file $config cannot be read"
    ! grep -q '^[^[:alnum:]#]*\(exclude[_-]\)\{0,1\}participant[_-]label' "$config" \
        || stop 2 "$config chooses participants: tell submit.sh itself, with --participant-label"
fi

# Three arrays wait at once; SLURM has a limit for one array and one for all jobs together.
slurm=$(scontrol show config) || stop 69 'SLURM does not answer'
slurm_limit() { printf '%s\n' "$slurm" | sed -n "s/^$1 *= *\([0-9][0-9]*\).*/\1/p"; }
array=$(slurm_limit MaxArraySize) jobs=$(slurm_limit MaxJobCount)
most=$((${array:-1001} - 1)) jobs=$((${jobs:-10000} / 4))
[ "$jobs" -ge "$most" ] || most=$jobs
[ "$most" -ge 1 ] || stop 69 "SLURM takes no job arrays here: MaxArraySize is \
${array:-not known}, and MaxJobCount leaves $jobs tasks to each"

submission=$(mktemp -d "$output_dir/logs/slurm/$(date +%Y%m%dT%H%M%S)-XXXXXX") \
    || stop 2 "$output_dir/logs/slurm must be writable"
# A shell that is ended by a signal need not do what it has to do at its exit.
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'rm -r "$submission"' EXIT  # until something was submitted
chmod 755 "$submission"
list=$submission/participants.txt
# A link that leads nowhere (DataLad) gets a task, which says what to fetch.
find -L "$bids_dir" -mindepth 1 -maxdepth 1 \( -type d -o -type l \) -name 'sub-*' \
    | sed 's#.*/##' | grep -E '^sub-[A-Za-z0-9+]+$' | sort > "$submission/all.txt" || true
labels "$asked" > "$submission/asked.txt"
labels "$excluded" > "$submission/excluded.txt"
absent=$(sort -u "$submission/asked.txt" "$submission/excluded.txt" \
    | comm -23 - "$submission/all.txt" | head -n 1)
[ -z "$absent" ] || stop 2 "there is no $absent in $bids_dir"
[ -s "$submission/asked.txt" ] || cp "$submission/all.txt" "$submission/asked.txt"
comm -23 "$submission/asked.txt" "$submission/excluded.txt" > "$list"
only=${ONLY_UNFINISHED:-} only=${only#0}
if [ -n "$only" ]; then
    unfinished=$output_dir/logs/unfinished.txt
    [ -f "$unfinished" ] || stop 2 "there is no $unfinished: run the group level first"
    sort "$unfinished" | comm -12 "$list" - > "$submission/rest.txt"
    mv "$submission/rest.txt" "$list"
fi
count=$(wc -l < "$list")
[ "$count" -gt 0 ] \
    || stop 66 "no${only:+ unfinished} participant to process in $bids_dir"

at_once() { # participants of a task, given how many are wanted
    least=$(((count + most - 1) / most)) wanted=$(($1 < count ? $1 : count))
    echo $((least > wanted ? least : wanted))
}
per_task=$(at_once "${PER_TASK:-1}") per_gpu=$(at_once "${PER_GPU:-20}")

# What every task reads: sbatch may hand on nothing of this shell's environment (--export=NONE), its
# PATH included.
app=${APP:-$(quoted "$(command -v bids_moediff || echo bids_moediff)")}
{
    printf 'list=%s per_task=%s per_gpu=%s\n' "$(quoted "$list")" "$per_task" "$per_gpu"
    printf "excluded='%s'\n" "$(tr '\n' ' ' < "$submission/excluded.txt")"
    printf 'app() { %s %s %s "$@" -w %s; }\n' "$app" "$(quoted "$bids_dir")" \
        "$(quoted "$output_dir")" "$(quoted "$work_dir")"
    printf 'level_participant() { app participant%s "$@"; }\n' "$options"
    cat "$here/task.sh"
} > "$submission/task.sh"
rm "$submission/all.txt" "$submission/asked.txt" "$submission/excluded.txt"
sh -n "$submission/task.sh" || stop 2 "APP is not a line that a shell reads: $app"
# A wrong option would fail in every task: the app looks at one participant first, and writes
# nothing. An image that cannot be used (1) or none (66) is for the task to tell.
code=0
if [ "${CHECK:-1}" != 0 ]; then
    first=$(head -n 1 "$list")
    # shellcheck source=/dev/null
    (. "$submission/task.sh" && level_participant --participant-label "$first" --dry-run) \
        > "$submission/plan.txt" 2> "$submission/check.txt" < /dev/null || code=$?
    case $code in
    0 | 1 | 66) grep 'not on this machine' "$submission/plan.txt" >&2 || true ;;
    *)
        cat "$submission/check.txt" >&2
        stop "$code" 'nothing was submitted; CHECK=0 submits without this check of the options'
        ;;
    esac
    rm "$submission/plan.txt" "$submission/check.txt"
fi

log=$(printf '%s' "$submission" | sed 's/%/%%/g')
submitted=''
trap 'if [ -n "${submitted# }" ]; then scancel $submitted; else rm -r "$submission"; fi' EXIT
submit() { # NAME LOG MEMORY OPTIONS [option of sbatch...]: a job that waits for the last one
    script=$here/$1.sbatch output=$log/$2 more=$4
    case $more in *--mem*) memory='' ;; *) memory=--mem=$3 ;; esac  # --mem-per-cpu rules --mem out
    shift 4
    # shellcheck disable=SC2086
    set -- $memory "$@"
    eval "set -- \"\$@\" $more"
    [ -z "$submitted" ] || set -- "--dependency=afterany:${submitted##* }" "$@"
    # A task that starts anew (requeued) must not write over its log. In one step: a signal must
    # not come between a job and its place in the list.
    submitted="$submitted $(sbatch --parsable --open-mode=append --output="$output" "$@" \
        "$script" "$submission")" || exit
    submitted=${submitted%%;*}
}
cpu=${CPU_OPTIONS:-} tasks=$(((count + per_task - 1) / per_task))
minutes=$((per_task * 5 + 25))  # 30 for one participant, 5 for each further one
submit preproc %x-%A_%a.log 6G "$cpu" --array="1-$tasks" --time="$minutes"
submit superres %x-%A_%a.log 16G "${GPU_OPTIONS:-}" \
    --array="1-$(((count + per_gpu - 1) / per_gpu))" --time="$((per_gpu * 10 + 40))"
submit report %x-%A_%a.log 6G "$cpu" --array="1-$tasks" --time="$minutes"
submit group %x-%j.log 6G "$cpu"
trap - EXIT
echo "$count participants: preparation, super-resolution, reports, group are the jobs$submitted"
echo "lists and logs: $submission"
