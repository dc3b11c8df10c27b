# scaledit with PyTorch's default build for Linux, which brings its own CUDA libraries. The machine needs an NVIDIA driver
# and the NVIDIA Container Toolkit. Not built by scaledit's tests: they parse this file and check its paths.
#
#   docker build -f docker/cuda.Dockerfile -t scaledit:cuda .
#   docker run --rm -it --init --gpus all --shm-size 8g -v "$PWD/runs:/work/runs" -v /data/latents:/data:ro scaledit:cuda \
#     train imagenet256-b2 --nproc 8 --out runs/b2 data.path=/data
#
# --shm-size: the processes that read images ahead share memory. On Linux add  --user "$(id -u):$(id -g)"  if your
# user id is not 1000.
FROM python:3.11.14-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# torch.compile builds kernels with a C compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# PyTorch first: this layer is large (gigabytes) and changes rarely.
RUN pip install "torch==2.13.0"

# Then scaledit with its libraries.
COPY pyproject.toml README.md LICENSE /opt/scaledit/
COPY src /opt/scaledit/src
RUN pip install "torch==2.13.0" "/opt/scaledit[diffusers,photos,parquet,hub,tensorboard,wandb]" \
    && rm -rf /opt/scaledit/build

# Everything that scaledit and its libraries write goes into these two folders. Any user id may write there, for
# --user, and has a name and a home.
RUN useradd --create-home --uid 1000 scaledit \
    && mkdir -p /work/runs /cache \
    && chown -R scaledit:scaledit /work /cache \
    && chmod -R a+rwX /work /cache
ENV USER=scaledit HOME=/cache \
    HF_HOME=/cache/huggingface MPLCONFIGDIR=/cache/matplotlib TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME ["/work/runs", "/cache"]

USER scaledit
WORKDIR /work
ENTRYPOINT ["scaledit"]
CMD ["--help"]
