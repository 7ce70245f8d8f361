# One image for CPU and GPU: CUDA comes with torch's wheels, the driver from the host (--gpus all).
FROM python:3.11.14-slim-bookworm

# USER is what getpass falls back on where the user id has no name (docker run --user).
ENV HF_HOME=/app/artifacts/cache/huggingface \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    USER=analyticup

WORKDIR /app

# `test --version` sets up and needs no source, so that a change of code leaves this large layer alone.
COPY run.sh requirements.txt ./
COPY .ci/requirements*.lock .ci/
RUN ./run.sh test --version

# Give --build-arg UID="$(id -u)" where folders of the host are mounted for writing.
ARG UID=1000
RUN useradd --no-log-init --non-unique --create-home --uid "$UID" analyticup

COPY . .
RUN install --directory --owner=analyticup --group=analyticup data artifacts artifacts/cache submissions \
    && ./run.sh --version

USER ${UID}
VOLUME ["/app/data", "/app/artifacts", "/app/artifacts/cache", "/app/submissions"]
# Python turns SIGINT into a clean stop; as process 1 it would ignore SIGTERM.
STOPSIGNAL SIGINT
ENTRYPOINT ["./run.sh"]
