# SPDX-License-Identifier: Apache-2.0
# bids_moediff as a container image.
#   make image                with CUDA (from the torch wheels)
#   make image VARIANT=cpu    without
# Everything lies under /opt, nothing in a home folder; it runs read-only, without network and as
# any user. docs/image.md has a log of a real build and run.

FROM debian:bookworm-slim AS build
ARG VARIANT=cuda
# Only torch itself is looked up there, and only for the cpu variant.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

ENV PYTHONNOUSERSITE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NO_ET=1 \
    TEMPLATEFLOW_HOME=/opt/templateflow \
    PATH=/opt/bids_moediff/bin:$PATH

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/bids_moediff

WORKDIR /src
COPY constraints.txt ./
RUN if [ "$VARIANT" = cpu ]; then \
        grep '^torch==' constraints.txt > torch.txt \
        && pip install --no-deps --retries 1 --extra-index-url "$TORCH_CPU_INDEX" -r torch.txt; \
    fi

# The dependencies in a layer of their own, so that a change of the code does not fetch them anew.
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY bids_moediff/__init__.py bids_moediff/__init__.py
COPY bids_moediff/data/demo/LICENSE bids_moediff/data/demo/LICENSE
# What nobody runs goes in the same layer: tests of libraries (numpy.testing imports some of its
# own), headers and archives for linking, and all programs of torch but the one that it starts.
RUN pip install -c constraints.txt '.[dicom]' \
    && packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
    && rm -rf "$packages/torch/include" "$packages/torch/test" \
    && find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete \
    && find "$packages" -type f -name '*.a' -delete \
    && find "$packages" -type d -name tests ! -path "$packages/numpy/*" -prune -exec rm -r {} +

# Triton, which torch with CUDA asks for, compiles kernels; nothing here does, and it is 0.65 GB.
COPY bids_moediff bids_moediff
RUN pip install --no-deps --force-reinstall . \
    && pip check \
    && pip uninstall -y triton

# Every model folder must load and match its checksum, or there is no image.
RUN python -c "from bids_moediff.families.load import load_model; \
    from bids_moediff.networks.model_folder import MODELS_FOLDER; \
    print([load_model(path).sha256 for path in sorted(MODELS_FOLDER.iterdir())] or exit('no model'))"

# Standard spaces to carry along, space-separated TemplateFlow names; empty for none. Without a way
# to their server the image is built without them, and says so.
ARG TEMPLATES="MNI152NLin2009cAsym"
COPY tools/fetch_templates.py /src/
RUN python fetch_templates.py $TEMPLATES


FROM debian:bookworm-slim
ARG VERSION=0.1.0

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin moediff

COPY --from=build /opt/templateflow /opt/templateflow
COPY --from=build /opt/bids_moediff /opt/bids_moediff
COPY bids_moediff/data/demo /opt/demo

# Whatever a library wants to keep goes to /tmp; the app points it at the work folder where it knows one.
ENV PATH=/opt/bids_moediff/bin:$PATH \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NO_ET=1 \
    HOME=/tmp \
    USER=moediff \
    LOGNAME=moediff \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torch \
    TRITON_CACHE_DIR=/tmp/triton \
    TEMPLATEFLOW_HOME=/opt/templateflow \
    TEMPLATEFLOW_AUTOUPDATE=false \
    BIDS_MOEDIFF_DOCKER_TAG=$VERSION

WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["/opt/bids_moediff/bin/bids_moediff"]
CMD ["--help"]

# Last, as they change with every build: `make image` fills them in.
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="bids_moediff" \
      org.opencontainers.image.description="BIDS App: brain MRI super-resolution with a mixture of diffusion experts" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
