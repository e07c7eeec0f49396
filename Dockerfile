# One image, two doors: jobs (shelfmark) and HTTP (shelfmark-serve). docs/deployment.md says how to run it.
#
#   docker build --tag shelfmark .                                            # both doors
#   docker build --tag shelfmark-serve --target serve .                       # the same layers, and a health check
#   docker build --tag shelfmark-gpu --build-arg EXTRAS="gpu aws databases" . # CUDA, for Nvidia's container toolkit
#
#   BASE ──► packages ──► code         build: uv, the lock
#     └────► jobs ◄── COPY ──┘         no uv, no cache, no compiler
#              └──► serve              and a health check
#
# BASE is a tag and no digest: each build gets the security fixes of Debian and of Python 3.11, the packages are those
# of the lock all the same. Where every build has to have the same base, or one with certificates and an index of your
# own: --build-arg BASE=python:3.11-slim@sha256:…
ARG BASE=python:3.11-slim


# The packages of the lock, with its hashes: a layer that new code does not touch.
FROM ${BASE} AS packages
# UNCHECKED_HASH: compiled files without the times of the build, which are not compared at each start
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore UV_LINK_MODE=copy PYC_INVALIDATION_MODE=UNCHECKED_HASH
WORKDIR /build
COPY requirements.lock requirements-gpu.lock ./
RUN awk '/^[^ ]/ {wanted = /^uv==/} wanted' requirements.lock > uv.txt \
 && python -m venv /uv \
 && /uv/bin/pip install --no-deps --require-hashes --requirement uv.txt \
 && python -m venv --without-pip /opt/shelfmark
# openvino: the fastest engine on a CPU, and nncf, with which extract.precision=int8 is calibrated; aws: s3://;
# databases: PostgreSQL. The lock has onnx, hub and jax, too.
ARG EXTRAS="openvino aws databases"
COPY LICENSE pyproject.toml setup.cfg ./
# The empty folders are there because setup.cfg names them.
RUN --mount=type=cache,target=/root/.cache/uv \
    mkdir features models pipeline serving \
 && for extra in ${EXTRAS}; do set -- "$@" --extra "${extra}"; done \
 && /uv/bin/uv pip install --python /opt/shelfmark --compile-bytecode --requirement setup.cfg "$@" \
    --constraint requirements.lock --constraint requirements-gpu.lock --build-constraint requirements.lock


# Our own code, some megabytes.
FROM packages AS code
COPY . .
RUN --mount=type=cache,target=/root/.cache/uv \
    /uv/bin/uv pip install --python /opt/shelfmark --prefix /code --compile-bytecode --no-deps \
    --build-constraint requirements.lock .


FROM ${BASE} AS jobs
# HOME: caches of libraries go to /tmp, the only path that has to be writable besides the volumes (--read-only).
ENV PATH=/opt/shelfmark/bin:$PATH HOME=/tmp KERAS_HOME=/weights PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --no-log-init --no-create-home --home-dir /tmp --uid 1000 --user-group shelfmark \
 && install --directory --owner=1000 --group=1000 /data /weights
COPY --from=packages /opt/shelfmark /opt/shelfmark
COPY --from=code /code /opt/shelfmark
USER 1000:1000
# The workspace, and the weights that Keras downloads. Mounted directories must be writable by uid 1000.
VOLUME ["/data", "/weights"]
WORKDIR /data
# No shell and no init: process 1 handles SIGTERM itself, and its children are its own workers.
CMD ["shelfmark", "--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="shelfmark" \
      org.opencontainers.image.description="Product categories from photos, with a certified precision" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"


# A job answers no HTTP, so the health check is here alone.
FROM jobs AS serve
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["shelfmark-serve", "--workspace", "/data", "--host", "0.0.0.0", "--port", "8000"]


# What is built without --target.
FROM jobs
