#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build the container image, run the demo in it as the README says, run it plainly and as a SIF:
# all outputs must be the same bytes (tools/compare_outputs.py says what is not compared).
#
#   tools/image_test.sh --list       the commands of the README that are run, and nothing else
#   tools/image_test.sh [WORK]       needs root, tens of GB in WORK and, on a machine without docker,
#                                    buildah, podman, runc, conmon, fuse-overlayfs and debootstrap
#   tools/image_test.sh --no-sif [WORK]
#   VARIANT=cuda                     build the variant with CUDA instead of the README's (cpu); its
#                                    runs are on the processor as well, unless OPTIONS say otherwise
#   PLAIN='bids_moediff'             how the app is called outside the image (this is the default);
#                                    its libraries must have the versions of constraints.txt
#   OPTIONS='--output-resolution 1'  options of bids_moediff for the runs (this is the default)
#
# The Dockerfile is built unmodified. Without docker its base, debian:bookworm-slim, is made here by
# debootstrap and stored under the full name that FROM resolves to, so no registry is needed. Where
# pip of this machine needs a certificate or a folder of wheels (SSL_CERT_FILE, PIP_FIND_LINKS),
# both are lent to the build and do not stay in the image.
# The image runs with a read-only root and input, without network, as user 12345, with a /tmp of
# 64 MB and without a HOME that can be written; its output is another file system than its /tmp.
set -eu
cd "$(dirname "$0")/.."

readme_lines() { sed -n '/^```bash$/,/^```$/p' README.md | grep -E "^($1) "; }
if [ "${1:-}" = --list ]; then
    readme_lines 'make image|docker|apptainer'
    exit
fi
sif=yes
if [ "${1:-}" = --no-sif ]; then sif=no; shift; fi
work=$(mkdir -p "${1:-/tmp/image-test}" && cd "${1:-/tmp/image-test}" && pwd)
data=$PWD/bids_moediff/data/demo
plain=${PLAIN:-bids_moediff}
variant=${VARIANT:-cpu}
options=${OPTIONS:---output-resolution 1}
started=$(date +%s)
say() { echo "[$(($(date +%s) - started)) s] $*"; }
# What this machine tells numerical libraries about its processor does not reach the image.
for name in $(env | sed -n 's/^\(\(OPENBLAS\|MKL\|OMP\|ATEN\|ONEDNN\|DNNL\)_[A-Z0-9_]*\)=.*/\1/p'); do
    unset "$name"
done
has_docker() { docker info > /dev/null 2>&1; }

# The README's words, with its example folders and names replaced by those of this test.
fill_in() {
    echo "$1" | sed -e "s# /data:/data:ro# $data:/data:ro#" -e "s# /out:/out# $2:/out#" \
        -e "s# bids_moediff\.sif # $work/bids_moediff.sif #" \
        -e 's# --tmpfs /tmp # --tmpfs /tmp:rw,mode=1777,size=64m --env HOME=/no/home #'
}

make_base() {  # debian:bookworm-slim out of debootstrap
    name=docker.io/library/debian:bookworm-slim
    buildah inspect --type image "$name" > /dev/null 2>&1 && return
    [ -f "$work/bookworm.done" ] || {
        rm -rf "$work/bookworm"
        debootstrap --variant=minbase --include=ca-certificates bookworm "$work/bookworm" \
            > "$work/debootstrap.log"
        touch "$work/bookworm.done"
    }
    tar -C "$work/bookworm" --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' \
        --exclude='./var/cache/apt/archives/*.deb' -cf "$work/base.tar" .
    container=$(buildah from scratch)
    buildah add -q "$container" "$work/base.tar" /
    buildah config --cmd bash \
        --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah commit -q --rm "$container" "$name"
    rm "$work/base.tar"
}

lend() {  # build options that lend this machine's certificate and wheels to pip
    printf '[global]\n' > "$work/pip.conf"
    if [ -n "${SSL_CERT_FILE:-}" ]; then
        printf 'cert = %s\n' "$SSL_CERT_FILE" >> "$work/pip.conf"
        printf -- '-v %s:%s:ro ' "$SSL_CERT_FILE" "$SSL_CERT_FILE"
    fi
    # A folder of wheels may hold the cpu torch, which pip prefers to the one with CUDA.
    if [ -n "${PIP_FIND_LINKS:-}" ] && [ "$variant" = cpu ]; then
        printf 'find-links = %s\n' "$PIP_FIND_LINKS" >> "$work/pip.conf"
        printf -- '-v %s:%s:ro ' "$PIP_FIND_LINKS" "$PIP_FIND_LINKS"
    fi
    printf -- '-v %s:/etc/pip.conf:ro ' "$work/pip.conf"
}

build_image() {
    if has_docker; then
        make image VARIANT="$variant"
        return
    fi
    make_base
    say "base image made"
    make image VARIANT="$variant" \
        BUILD="buildah bud --layers --isolation chroot --pull-never $(lend)"
}

say_size() {
    if has_docker; then
        size=$(docker image inspect --format '{{.Size}}' bids_moediff)
    else
        size=$(podman image inspect --format '{{.Size}}' localhost/bids_moediff)
    fi
    say "image of $((size / 1000000)) MB"
}

image_command() {  # the docker run line of the README
    command=$(fill_in "$(readme_lines 'docker run')" "$1")
    has_docker || {
        limits='--ulimit nofile=20000:20000 --ulimit nproc=20000:20000'
        command=$(echo "$command" | sed -e "s#^docker run#podman --runtime runc run $limits#" \
            -e 's# bids_moediff /data# localhost/bids_moediff /data#')
    }
    echo "$command"
}

run_image() {
    command=$(image_command "$1")
    say "$command"
    eval "$command $options"
}

check_names_the_flag() {  # without a GPU, --check ends with 69 and says what to add to the call
    code=0
    text=$(eval "$(image_command "$1" | sed 's# /data /out participant# --check --device cuda#')") \
        || code=$?
    if [ "$code" != 69 ] || ! echo "$text" | grep -q -- '--gpus all'; then
        echo "--check ended with $code: $text" >&2
        exit 1
    fi
    say "$(echo "$text" | grep 'NOT OK')"
}

check_names_the_tmpfs() {  # read-only without a /tmp: one sentence of --check
    code=0
    without="$(image_command "$1" | sed -e 's# --tmpfs [^ ]* # #' \
        -e 's# /data /out participant# --check --device cpu#')"
    has_docker || without=$(echo "$without" | sed 's# --read-only # --read-only --read-only-tmpfs=false #')
    text=$(eval "$without") || code=$?
    if [ "$code" != 2 ] || ! echo "$text" | grep -q -- '--tmpfs /tmp' \
        || [ "$(echo "$text" | grep -c 'NOT OK')" != 1 ]; then
        echo "--check without a /tmp ended with $code: $text" >&2
        exit 1
    fi
    say "$(echo "$text" | grep 'NOT OK')"
}

check_labels() {  # filled in by the build
    format='{{index .Config.Labels "org.opencontainers.image.revision"}}'
    format="$format {{index .Config.Labels \"org.opencontainers.image.created\"}}"
    if has_docker; then
        labels=$(docker image inspect --format "$format" bids_moediff)
    else
        labels=$(podman image inspect --format "$format" localhost/bids_moediff)
    fi
    case $labels in *unknown* | ' '* | *' ') echo "labels: $labels" >&2; exit 1 ;; esac
    say "revision and date: $labels"
}

fresh() { rm -rf "$1" && mkdir -m 777 "$1"; }

compare() {
    python3 tools/compare_outputs.py "$work/out-plain" "$1"
    say "$(basename "$1"): the same bytes, $(du -sm "$1" | cut -f 1) MB"
}

say "plain run"
fresh "$work/out-plain"
# shellcheck disable=SC2086
$plain "$data" "$work/out-plain" participant $options
say "building"
build_image
say "built"
say_size
check_labels
fresh "$work/out-image"
check_names_the_tmpfs "$work/out-image"
if [ ! -e /dev/nvidiactl ]; then check_names_the_flag "$work/out-image"; fi
run_image "$work/out-image"
compare "$work/out-image"

if [ "$sif" = yes ]; then
    sh tools/sif_test.sh "$work" \
        "$(fill_in "$(readme_lines 'apptainer run')" "$work/out-sif") $options"
    compare "$work/out-sif"
fi
say "all done"
