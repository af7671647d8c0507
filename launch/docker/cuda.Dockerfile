# Hecate on NVIDIA GPUs:
#
#   docker build -f launch/docker/cuda.Dockerfile -t hecate:cuda .
#   docker run --rm --gpus all --ipc host --ulimit memlock=-1 -v "$PWD/work:/work" hecate:cuda \
#       /opt/hecate/launch/torchrun.sh /opt/hecate/configs/train/demo.yaml
#
# --ipc host: NCCL passes data between the ranks of a node through shared memory, of which a
# container has 64 MiB otherwise. Everything that a run writes or reads again lies under /work:
# mount a volume there. torch brings CUDA's libraries with it; the image is there for the driver's
# part, and gcc for the kernels that Triton builds.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

ARG TORCH=2.13.0
ARG RAY=2.60.0
ARG UID=1000

# wget: KubeRay's probes of a pod's health call it. Ubuntu's image has a user of that number.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        gcc libc6-dev procps python3 python3-dev python3-venv wget \
    && rm -rf /var/lib/apt/lists/* \
    && (userdel --remove ubuntu || true) \
    && useradd --uid "$UID" --create-home hecate \
    && install --directory --owner hecate /work \
    && python3 -m venv /opt/venv

ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
RUN pip install "torch==$TORCH" "ray[train,serve,default]==$RAY"

COPY . /opt/hecate
RUN pip install --editable "/opt/hecate[ray,serve]"

USER $UID
WORKDIR /work
ENV XDG_CACHE_HOME=/work/.cache HF_HOME=/work/.cache/huggingface TRITON_CACHE_DIR=/tmp/triton
CMD ["hecate", "doctor"]
