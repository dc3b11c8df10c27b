# scaledit with the CPU build of PyTorch. Not built by scaledit's tests: they parse this file and check its paths.
#
#   docker build -f docker/cpu.Dockerfile -t scaledit:cpu .
#   docker run --rm -it --init -v "$PWD/runs:/work/runs" scaledit:cpu train digits --out runs/demo
#
# On Linux add  --user "$(id -u):$(id -g)"  if your user id is not 1000.
FROM python:3.11.14-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# PyTorch first: this layer is large and changes rarely.
COPY constraints/cpu.txt /opt/scaledit/constraints/cpu.txt
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu --constraint /opt/scaledit/constraints/cpu.txt torch

# Then scaledit with its libraries.
COPY pyproject.toml README.md LICENSE /opt/scaledit/
COPY src /opt/scaledit/src
RUN pip install --constraint /opt/scaledit/constraints/cpu.txt "/opt/scaledit[diffusers,photos,parquet,hub,tensorboard]" \
    && rm -rf /opt/scaledit/build

# Everything that scaledit and its libraries write goes into these two folders. Any user id may write there, for
# --user, and has a name and a home.
RUN useradd --create-home --uid 1000 scaledit \
    && mkdir -p /work/runs /cache \
    && chown -R scaledit:scaledit /work /cache \
    && chmod -R a+rwX /work /cache
ENV USER=scaledit HOME=/cache \
    HF_HOME=/cache/huggingface MPLCONFIGDIR=/cache/matplotlib TORCHINDUCTOR_CACHE_DIR=/cache/inductor
VOLUME ["/work/runs", "/cache"]

USER scaledit
WORKDIR /work
ENTRYPOINT ["scaledit"]
CMD ["--help"]
