#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build a SIF of the image bids_moediff and run one command of Apptainer with it.
#
#   tools/sif_test.sh WORK 'apptainer run ...'
#
# Called by tools/image_test.sh. Without Apptainer on the PATH one is installed from Debian into a
# root of its own under WORK; that root is made a mount and pivoted to, as Apptainer does not start
# in a plain chroot.
set -eu
cd "$(dirname "$0")/.."
work=$1
command=$2
root=$work/trixie
started=$(date +%s)
say() { echo "[sif $(($(date +%s) - started)) s] $*"; }

make_root() {
    [ -x "$root/usr/bin/apptainer" ] && return
    debootstrap --variant=minbase --include=ca-certificates trixie "$root" > "$work/trixie.log"
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    echo 'deb http://deb.debian.org/debian sid main' > "$root/etc/apt/sources.list.d/sid.list"
    chroot "$root" apt-get -o Acquire::Check-Valid-Until=false update >> "$work/trixie.log"
    DEBIAN_FRONTEND=noninteractive chroot "$root" \
        apt-get install -y --no-install-recommends apptainer >> "$work/trixie.log"
}

inside() {  # one shell line, in the root, with the checkout and WORK at their own places
    if command -v apptainer > /dev/null; then
        sh -c "$1"
        return
    fi
    mkdir -p "$root$work" "$root$PWD" "$root/old"
    unshare -m sh -eu -c '
        root=$1; work=$2; line=$3; sources=$4
        mount --make-rprivate /
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount --rbind /sys "$root/sys"
        mount --rbind /dev "$root/dev"
        mount --bind "$work" "$root$work"
        mount --bind "$sources" "$root$sources"
        cd "$root"
        pivot_root . old
        cd "$sources"
        umount -l /old
        # Root of a container may lack capabilities that Apptainer would otherwise ask for.
        export TMPDIR="$work/tmp" APPTAINER_CACHEDIR="$work/cache" APPTAINER_NO_PRIVS=1
        exec sh -c "$line"
    ' sh "$root" "$work" "$1" "$PWD"
}

mkdir -p "$work/tmp"
command -v apptainer > /dev/null || make_root
if docker info > /dev/null 2>&1; then
    docker save -o "$work/bids_moediff.tar" bids_moediff
else
    rm -f "$work/bids_moediff.tar"
    podman save -q --format docker-archive -o "$work/bids_moediff.tar" localhost/bids_moediff
fi
say "archive of $(du -m "$work/bids_moediff.tar" | cut -f 1) MB"
inside "apptainer build --force --notest --build-arg bootstrap=docker-archive \
    --build-arg from=$work/bids_moediff.tar $work/bids_moediff.sif singularity/bids_moediff.def"
say "SIF of $(du -m "$work/bids_moediff.sif" | cut -f 1) MB"
rm -f "$work/bids_moediff.tar"
inside "apptainer test --containall --no-home $work/bids_moediff.sif"
code=0
text=$(inside "apptainer run --containall --no-home $work/bids_moediff.sif --check --device cuda") \
    || code=$?
if [ ! -e /dev/nvidiactl ] && { [ "$code" != 69 ] || ! echo "$text" | grep -q -- '--nv'; }; then
    echo "--check ended with $code: $text" >&2
    exit 1
fi
say "$(echo "$text" | grep 'NOT OK')"
rm -rf "$work/out-sif" && mkdir -m 777 "$work/out-sif"
say "$command"
inside "$command"
say "done"
