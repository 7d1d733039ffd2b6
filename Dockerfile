# bimact with its simulation, policy server and exporters, for NVIDIA GPUs (driver 570 or newer) and for CPUs.
#   docker build --tag bimact .
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" --volume "$PWD:/work" bimact demo
# Without a GPU: leave out --gpus all. PyTorch's wheels contain CUDA, so the image needs none of its own.

FROM python:3.12-slim-trixie AS base
# EGL for rendering without a display (Mesa's, on the CPU, where there is no GPU); gcc for torch.compile; make and git
# for development.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1-mesa-dri libopengl0 gcc libc6-dev make git \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir -p /usr/share/glvnd/egl_vendor.d \
    && echo '{"file_format_version": "1.0.0", "ICD": {"library_path": "libEGL_nvidia.so.0"}}' \
        > /usr/share/glvnd/egl_vendor.d/10_nvidia.json \
    && useradd --create-home --uid 1000 --shell /bin/bash bimact \
    && mkdir /work \
    && chown bimact /work \
    && chmod 1777 /home/bimact /work
# USER and HOME for a user id that the image does not know (docker run --user).
ENV NVIDIA_DRIVER_CAPABILITIES=all MUJOCO_GL=egl HOME=/home/bimact USER=bimact PIP_NO_CACHE_DIR=1
WORKDIR /work

FROM base AS wheels
COPY . /source
RUN pip install build \
    && python -m build --wheel --outdir /wheels /source \
    && python -m build --wheel --outdir /wheels /source/packages/bimact-client

FROM base
# Below 2.11 PyTorch comes with CUDA 12.8, which drivers from 570 on run; 2.11 and later need 580.
ARG TORCH="torch>=2.8,<2.11"
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    pip install "$TORCH" torchvision \
    && pip install /wheels/bimact_client-*.whl "$(echo /wheels/bimact-*.whl)[sim,serve,export,sweep]"
USER 1000
ENTRYPOINT ["bimact"]
CMD ["--help"]
