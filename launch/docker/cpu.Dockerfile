# Hecate on CPUs, for trying out and for tests:
#
#   docker build -f launch/docker/cpu.Dockerfile -t hecate:cpu .
#   docker run --rm --shm-size 2g -v "$PWD/work:/work" hecate:cpu hecate doctor
#
# Everything that a run writes or reads again lies under /work: mount a volume there.
FROM python:3.12-slim-trixie

ARG TORCH=2.13.0
ARG RAY=2.60.0
ARG UID=1000

# wget: KubeRay's probes of a pod's health call it. g++: builds the engine's kernels.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ procps wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid "$UID" --create-home hecate \
    && install --directory --owner hecate /work

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
RUN pip install "torch==$TORCH" --index-url https://download.pytorch.org/whl/cpu \
    && pip install "ray[train,serve,default]==$RAY"

COPY . /opt/hecate
RUN pip install --editable "/opt/hecate[ray,serve]"

USER $UID
WORKDIR /work
ENV XDG_CACHE_HOME=/work/.cache HF_HOME=/work/.cache/huggingface
CMD ["hecate", "doctor"]
