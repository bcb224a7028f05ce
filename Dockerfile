# Two images from one file:  docker build --target service .   and   docker build --target worker .
# Any Debian-like base with python3 and its venv module will do.
ARG BASE_IMAGE=python:3.12-slim-trixie

# ---- our own wheel, and a pip that never reaches the final images
FROM ${BASE_IMAGE} AS builder
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY deploy/requirements/build.lock ./
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --requirement build.lock \
    && python3 -m venv --without-pip /opt/cmcl
COPY pyproject.toml README.md LICENSE ./
COPY cmcl ./cmcl
COPY service ./service
COPY workers ./workers
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist .

# ---- third-party packages first: they change less often than our code
FROM builder AS service-venv
COPY deploy/requirements/service.lock ./
RUN /opt/build/bin/pip --python /opt/cmcl/bin/python install --require-hashes --requirement service.lock \
    && /opt/build/bin/pip --python /opt/cmcl/bin/python install --no-deps dist/*.whl

FROM builder AS worker-venv
COPY deploy/requirements/worker.lock ./
RUN /opt/build/bin/pip --python /opt/cmcl/bin/python install --require-hashes --requirement worker.lock \
    && /opt/build/bin/pip --python /opt/cmcl/bin/python install --no-deps dist/*.whl

# ---- what both images share: a user without rights, and no way to write bytecode at run time
FROM ${BASE_IMAGE} AS runtime
ENV PATH=/opt/cmcl/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
# The user has a name and a home, because Ray and torch ask for both.
RUN groupadd --gid 10001 cmcl \
    && useradd --no-log-init --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin cmcl
WORKDIR /home/cmcl
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# ---- Ray nodes, for training and for serving. KubeRay starts `ray` in it through bash.
FROM runtime AS worker
LABEL org.opencontainers.image.title="cmcl worker" \
      org.opencontainers.image.description="Trains and serves embeddings on a Ray cluster"
COPY --from=worker-venv /opt/cmcl /opt/cmcl
USER 10001:10001
CMD ["ray", "--version"]

# ---- the control plane: no torch
FROM runtime AS service
LABEL org.opencontainers.image.title="cmcl service" \
      org.opencontainers.image.description="Takes datasets over HTTP and turns them into versions"
COPY --from=service-venv /opt/cmcl /opt/cmcl
# The default, 127.0.0.1, cannot be reached from outside a container.
ENV CMCL_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["python", "-m", "service"]
