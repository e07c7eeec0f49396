# One image, two doors: jobs (shelfmark) and HTTP (shelfmark-serve). A mounted workspace must be writable by uid 1000.
#
#   docker build --tag shelfmark .
#   docker run --volume "$PWD/workspace:/data" shelfmark shelfmark demo --workspace /data
#   docker run --volume "$PWD/workspace:/data" --publish 8000:8000 \
#     --health-cmd 'python -c "import urllib.request as u; u.urlopen(\"http://127.0.0.1:8000/healthz\")"' \
#     shelfmark shelfmark-serve --workspace /data --host 0.0.0.0
#
# No init is needed: process 1 handles SIGTERM itself, and its children are its own workers.
# The health check is the server's, so it stands with its command: a job answers no HTTP.
# As a Beam worker, in an image of its own:
#
#   FROM shelfmark
#   COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam
#   ENTRYPOINT ["/opt/apache/beam/boot"]

# Installed into the system's Python: Beam's boot makes an environment that sees those packages, and no other's.
FROM python:3.11-slim
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 shelfmark && install --directory --owner shelfmark /data
WORKDIR /opt/shelfmark

# What we need at run time, with the lock's versions and hashes and none of its tools; a layer that new code does not
# touch. The empty folders are there because setup.cfg names them.
COPY LICENSE pyproject.toml setup.cfg requirements.lock ./
RUN mkdir features models pipeline serving \
 && awk '/^[^ ]/ {wanted = /^uv==/} wanted' requirements.lock > uv.txt \
 && pip install --no-deps --require-hashes --requirement uv.txt \
 && uv pip install --system --no-cache --constraint requirements.lock --build-constraint requirements.lock \
    --requirement setup.cfg \
 && pip uninstall --yes uv

COPY . .
RUN pip install --no-deps --no-build-isolation .

USER shelfmark
WORKDIR /data
EXPOSE 8000
CMD ["shelfmark", "--help"]
