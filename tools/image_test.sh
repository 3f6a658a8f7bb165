#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build the container image and run the demo in it as the README says; then the same as a SIF.
#
#   tools/image_test.sh --list       the commands of the README that are run, and nothing else
#   tools/image_test.sh [WORK]       needs root, tens of GB in WORK and, on a machine without docker,
#                                    buildah, podman, runc, conmon, fuse-overlayfs and debootstrap
#   tools/image_test.sh --no-sif [WORK]
#   OPTIONS='--output-resolution 1'  options of bids_moediff for the runs (this is the default)
#
# The Dockerfile is built unmodified. Without docker its base, debian:bookworm-slim, is made here by
# debootstrap and stored under the full name that FROM resolves to, so no registry is needed. Where
# pip of this machine needs a certificate or a folder of wheels (SSL_CERT_FILE, PIP_FIND_LINKS),
# both are lent to the build and do not stay in the image.
# Every run is read-only, without network and as user 12345; all outputs must be the same bytes.
set -eu
cd "$(dirname "$0")/.."

readme_lines() { sed -n '/^```bash$/,/^```$/p' README.md | grep -E "^($1) "; }
if [ "${1:-}" = --list ]; then
    readme_lines 'docker|apptainer'
    exit
fi
sif=yes
if [ "${1:-}" = --no-sif ]; then sif=no; shift; fi
work=$(mkdir -p "${1:-/tmp/image-test}" && cd "${1:-/tmp/image-test}" && pwd)
data=$PWD/bids_moediff/data/demo
options=${OPTIONS:---output-resolution 1}
started=$(date +%s)
say() { echo "[$(($(date +%s) - started)) s] $*"; }

# The README's words, with its example folders and names replaced by those of this test.
fill_in() {
    echo "$1" | sed -e "s# /data:/data:ro# $data:/data:ro#" -e "s# /out:/out# $2:/out#" \
        -e "s# bids_moediff\.sif # $work/bids_moediff.sif #"
}

make_base() {  # debian:bookworm-slim out of debootstrap
    name=docker.io/library/debian:bookworm-slim
    buildah inspect --type image "$name" > /dev/null 2>&1 && return
    [ -d "$work/bookworm" ] || debootstrap --variant=minbase --include=ca-certificates \
        bookworm "$work/bookworm" > "$work/debootstrap.log"
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
    if [ -n "${PIP_FIND_LINKS:-}" ]; then
        printf 'find-links = %s\n' "$PIP_FIND_LINKS" >> "$work/pip.conf"
        printf -- '-v %s:%s:ro ' "$PIP_FIND_LINKS" "$PIP_FIND_LINKS"
    fi
    printf -- '-v %s:/etc/pip.conf:ro ' "$work/pip.conf"
}

build_image() {
    command=$(readme_lines 'docker build')
    if docker info > /dev/null 2>&1; then
        eval "$command"
        return
    fi
    make_base
    say "base image made"
    # Without a way to the template archive the image is built without templates.
    templates=
    curl -sfI -m 20 https://templateflow.s3.amazonaws.com > /dev/null 2>&1 \
        || templates='--build-arg TEMPLATES='
    [ -z "$templates" ] || say "template archive out of reach: building with TEMPLATES="
    # shellcheck disable=SC2086,SC2046
    buildah bud --layers --isolation chroot --pull-never $(lend) $templates \
        $(echo "$command" | sed 's/^docker build //')
}

run_image() {  # the docker run line of the README
    command=$(fill_in "$(readme_lines 'docker run')" "$1")
    if ! docker info > /dev/null 2>&1; then
        limits='--ulimit nofile=20000:20000 --ulimit nproc=20000:20000'
        command=$(echo "$command" | sed -e "s#^docker run#podman --runtime runc run $limits#" \
            -e 's# bids_moediff /data# localhost/bids_moediff /data#')
    fi
    say "$command"
    eval "$command $options"
}

compare() {  # the same bytes but for logs, reports' times and scratch
    ( cd "$1" && find . -type f ! -path './logs/*' ! -path './.work/*' ! -name '*.html' \
        ! -name '*.svg' -exec sha256sum {} + | sort -k 2 ) > "$work/$2.sha256"
    say "$2: $(wc -l < "$work/$2.sha256") files, $(du -sm "$1" | cut -f 1) MB"
    cmp "$work/$2.sha256" "$work/image.sha256"
}

say "building"
build_image
say "built"
rm -rf "$work/out-image" && mkdir -m 777 "$work/out-image"
run_image "$work/out-image"
compare "$work/out-image" image

if [ "$sif" = yes ]; then
    sh tools/sif_test.sh "$work" \
        "$(fill_in "$(readme_lines 'apptainer run')" "$work/out-sif") $options"
    compare "$work/out-sif" sif
fi
say "all done"
