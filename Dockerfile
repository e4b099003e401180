# fastseg in a container, for a CPU or, with --target cuda, for NVIDIA GPUs: docs/howto/install.md
#
# Both stand on the same slim Python. A CUDA image below would bring a second CUDA: torch's wheels
# hold the one that torch, Triton and DALI were built for, and the driver is the host's.
ARG PYTHON=3.12

# the compilers' versions are those of the Debian release below the image: a pin would soon be gone
FROM python:${PYTHON}-slim AS wheel
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN useradd --create-home --uid 1000 fastseg && install --directory --owner fastseg /data /runs

FROM base AS cuda
ARG EXTRAS=dali,triton,fast-png
# Triton and torch.compile build their launchers when a run begins
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint /constraints.txt "$(ls /wheels/*.whl)[${EXTRAS}]"
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /home/fastseg
ENTRYPOINT ["fastseg"]
CMD ["doctor"]

# the last stage is what is built unless another is named
FROM base AS cpu
ARG EXTRAS=fast-png
# torch's build without CUDA; the version is the one of the constraints, and satisfies them
RUN --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
    "$(grep --only-matching '^torch==[0-9.]*' /constraints.txt)"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint /constraints.txt "$(ls /wheels/*.whl)[${EXTRAS}]"
USER 1000
WORKDIR /home/fastseg
ENTRYPOINT ["fastseg"]
CMD ["doctor"]
