# A node. Build arguments: BASE_IMAGE, any Debian or Ubuntu with Python >= 3.11 and pip (python:3.13-slim).
#
# One process per container, not root, and it writes nowhere but under /data. tini is process 1: it hands SIGTERM on, and
# reaps what git leaves behind when a git process is killed at its limits.
ARG BASE_IMAGE=python:3.13-slim

# What the last stage and the building stages share. Nothing is installed that the base image has already.
FROM ${BASE_IMAGE} AS base
RUN set -e; need=''; \
    for program in git tini; do command -v "$program" >/dev/null || need="$need $program"; done; \
    if [ -n "$need" ]; then \
        apt-get update -qq; \
        apt-get install -y -qq --no-install-recommends $need >/dev/null; \
        rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log; \
    fi; \
    mkdir /data; chown 10001:0 /data; chmod 2770 /data

# The locked dependencies, every one checked by its hash: a layer that changes with the lock file only.
FROM base AS dependencies
COPY requirements-runtime.lock /tmp/
RUN python3 -m venv --without-pip /opt/gitquorum \
 && python3 -m pip --python /opt/gitquorum/bin/python install --disable-pip-version-check --quiet --no-cache-dir \
        --require-hashes --only-binary :all: --requirement /tmp/requirements-runtime.lock

# The wheel, built once, with a locked build backend; installed beside the dependencies, to be a small layer of its own.
FROM dependencies AS application
COPY requirements-build.lock /tmp/
RUN python3 -m venv --without-pip /opt/build \
 && python3 -m pip --python /opt/build/bin/python install --disable-pip-version-check --quiet --no-cache-dir \
        --require-hashes --only-binary :all: --requirement /tmp/requirements-build.lock
WORKDIR /src
COPY pyproject.toml README.md ./
COPY node node
COPY broker broker
COPY api api
RUN /opt/build/bin/python -m hatchling build --target wheel --directory /tmp/wheel \
 && python3 -m pip --python /opt/gitquorum/bin/python install --disable-pip-version-check --quiet --no-deps --no-index \
        --prefix /opt/application /tmp/wheel/*.whl

FROM base
LABEL org.opencontainers.image.title="gitquorum" \
      org.opencontainers.image.description="A replicated Git server: a push that is acknowledged is on a quorum of machines."
COPY --from=dependencies /opt/gitquorum /opt/gitquorum
COPY --from=application /opt/application /opt/gitquorum
COPY tools/healthcheck /usr/local/bin/gitquorum-healthcheck
ENV PATH=/opt/gitquorum/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GITQUORUM_HOST=0.0.0.0 \
    GITQUORUM_PORT=3001 \
    GITQUORUM_DATA_DIR=/data
# Group 0 is what /data belongs to, so that the container may run as any other user id as well (see docs/containers.md).
USER 10001:0
WORKDIR /data
VOLUME /data
EXPOSE 3001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 CMD ["gitquorum-healthcheck"]
ENTRYPOINT ["tini", "--", "gitquorum"]
CMD ["serve", "--config", "/etc/gitquorum/node.toml"]
