# syntax=docker/dockerfile:1
# Two images, one for each server: --target kserve, at the end of this file, and --target triton:
#
# docker build --target triton -t octavo-triton .
# docker run --rm --gpus all --shm-size=1g -p 8000-8002:8000-8002 -v "$PWD/models:/models:ro" octavo-triton
#
# /models is a model repository: /models/<name>/config.pbtxt with `backend: "octavo"` (or "vllm", as written for the
# server's vLLM backend), and /models/<name>/1/model.json, which names the weights by a path inside the container.
# Options after the image's name replace the command: `... octavo-triton tritonserver --model-repository=/models ...`
#
# Shared memory: the server and each model's stub hand tensors over in /dev/shm, one region a model that starts at 1 MB
# and grows with the requests in flight. Docker's 64 MB are soon used up; Kubernetes: an emptyDir with medium Memory.

# Any -py3 release from 25.03 on has the same Ubuntu 24.04 and Python 3.12: docker build --build-arg TRITON_RELEASE=25.03.
# Those on Ubuntu 22.04 have Python 3.10, which Octavo does not support.
ARG TRITON_RELEASE=25.08

FROM python:3.12.11-slim-bookworm AS wheel
WORKDIR /src
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY docker docker
COPY backend backend
COPY kserve kserve
RUN docker/install_triton.sh wheel python3 /src /wheels

FROM nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3 AS triton
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 \
    PIP_BREAK_SYSTEM_PACKAGES=1
# gcc and Python's headers: kernels are compiled at first use, for the machine that they run on.
# Without versions, because Ubuntu's archive drops old ones, and a pin would soon be one of them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/octavo
COPY constraints.txt ./
COPY docker docker
# torch is large and seldom changes: a layer of its own. constraints.txt pins torch==2.13.0, which from PyPI brings CUDA.
RUN docker/install_triton.sh torch /opt/octavo/engine
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    docker/install_triton.sh engine /opt/octavo/engine /wheels/*.whl \
    && docker/install_triton.sh front python3 /wheels/*.whl \
    && docker/install_triton.sh backend /opt/tritonserver/backends python3 octavo vllm
# A home, because compiled kernels are kept in ~/.cache. By number, because Kubernetes checks runAsNonRoot by number.
RUN useradd --create-home --uid 10001 octavo && install --directory --owner=10001 /models
USER 10001
WORKDIR /home/octavo
ENV OCTAVO_ENGINE_PYTHON=/opt/octavo/engine/bin/python

LABEL org.opencontainers.image.title="Octavo on the Triton Inference Server" \
      org.opencontainers.image.description="An LLM serving engine as a Python-based Triton backend" \
      org.opencontainers.image.licenses="Apache-2.0"
# HTTP, gRPC, metrics
EXPOSE 8000 8001 8002
# Ready means that every model is loaded, which takes a large one minutes.
HEALTHCHECK --start-period=30m --start-interval=5s --interval=15s --timeout=5s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
# The image's own entrypoint stays: it says what it finds of the machine and runs the command.
CMD ["tritonserver", "--model-repository=/models", "--exit-timeout-secs=30"]

# docker build --target kserve -t octavo-kserve .
# docker run --rm --gpus all --shm-size=1g -p 8080:8080 -p 8081:8081 -v "$PWD/my-llama:/mnt/models:ro" octavo-kserve \
#   --model_name=my-llama --model_dir=/mnt/models
#
# One model: a folder with config.json, *.safetensors and tokenizer.json, or with a GGUF file. kserve/*.yaml run this image.
FROM python:3.12.11-slim-bookworm AS kserve
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
# A C compiler, as above; Python's headers are there.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/octavo
COPY constraints.txt ./
COPY docker docker
# The engine's steps of the other image; here the server lives in the same environment.
RUN docker/install_triton.sh torch /opt/octavo/env
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    set -- /wheels/*.whl && docker/install_triton.sh engine /opt/octavo/env "${1}[kserve]"
RUN useradd --create-home --uid 10001 octavo
USER 10001
WORKDIR /home/octavo
ENV PATH=/opt/octavo/env/bin:$PATH

LABEL org.opencontainers.image.title="Octavo on KServe" \
      org.opencontainers.image.description="An LLM serving engine as a KServe predictor, with OpenAI's API" \
      org.opencontainers.image.licenses="Apache-2.0"
# HTTP with metrics, gRPC
EXPOSE 8080 8081
# Live means that it loads or works; Kubernetes asks by itself, see kserve/clusterservingruntime.yaml.
HEALTHCHECK --start-period=2m --start-interval=5s --interval=15s --timeout=5s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/v2/health/live', timeout=4)"]
ENTRYPOINT ["python", "-m", "octavo_kserve"]
CMD ["--model_dir=/mnt/models"]
