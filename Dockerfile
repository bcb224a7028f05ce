# Two images from one file:  docker build --target service .   and   docker build --target worker .
# Any Debian-like base with python3 and its venv module works. docs/deploying.md lists the arguments.
ARG BASE_IMAGE=python:3.12-slim-trixie

# ---- build tools, which are not part of the final images, and an empty environment
FROM ${BASE_IMAGE} AS tools
# No file contains the build date, so that the same sources give the same files.
ARG SOURCE_DATE_EPOCH=1580601600
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} \
    PYTHONHASHSEED=0 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_COMPILE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY deploy/requirements/build.lock deploy/requirements/sbom.lock ./
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --requirement build.lock \
    && python3 -m venv /opt/sbom \
    && /opt/sbom/bin/pip install --require-hashes --requirement sbom.lock \
    && python3 -m venv --without-pip /opt/cmcl

# ---- cmcl itself, in a separate layer: a release with unchanged packages is a pull of one megabyte
FROM tools AS app
COPY pyproject.toml README.md LICENSE ./
COPY cmcl ./cmcl
COPY service ./service
COPY workers ./workers
# Bytecode is not validated at run time, because modification times change in a registry.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/build/bin/pip --python /opt/cmcl/bin/python install --no-deps --prefix /app dist/*.whl \
    && cp -r service workers /app/lib/python3*/site-packages/ \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /app -p /opt/cmcl /app/lib

# ---- third-party packages. The lock lists all of them, so nothing is resolved (--no-deps).
# One file of torch needs Python 3.12 or newer, and fails to compile with earlier versions.
FROM tools AS service-venv
COPY deploy/requirements/service.lock ./
RUN /opt/build/bin/pip --python /opt/cmcl/bin/python install --no-deps --require-hashes --requirement service.lock \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/cmcl/lib
COPY pyproject.toml ./
RUN /opt/sbom/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
      --output-file sbom.cdx.json /opt/cmcl/bin/python

FROM tools AS worker-venv
# worker.lock has torch for CUDA; worker-cpu.lock leaves out packages that only GPUs need.
ARG WORKER_LOCK=worker.lock
# For a custom lock with packages from another index.
ARG PIP_EXTRA_INDEX_URL
COPY deploy/requirements/${WORKER_LOCK} ./
RUN /opt/build/bin/pip --python /opt/cmcl/bin/python install --no-deps --require-hashes --requirement "${WORKER_LOCK}" \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -x '/py312_' /opt/cmcl/lib
COPY pyproject.toml ./
RUN /opt/sbom/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
      --output-file sbom.cdx.json /opt/cmcl/bin/python

# ---- base of both images: an unprivileged user, and no bytecode written at run time
FROM ${BASE_IMAGE} AS runtime
ARG SOURCE_DATE_EPOCH=1580601600
ENV PATH=/opt/cmcl/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
# The user has a name and a home, because Ray and torch look up both.
RUN groupadd --gid 10001 cmcl \
    && useradd --no-log-init --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin cmcl
WORKDIR /home/cmcl

# ---- Ray nodes, for training and for serving. KubeRay starts `ray` in it through bash.
FROM runtime AS worker
COPY --from=worker-venv /opt/cmcl /opt/cmcl
COPY --from=worker-venv /build/sbom.cdx.json /opt/cmcl/sbom.cdx.json
# The dataset that `helm test` posts.
COPY examples/stream /opt/cmcl/examples/stream
COPY --from=app /app /opt/cmcl
USER 10001:10001
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="cmcl worker" \
      org.opencontainers.image.description="Trains and serves embeddings on a Ray cluster" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
CMD ["ray", "--version"]

# ---- the control plane: no torch
FROM runtime AS service
COPY --from=service-venv /opt/cmcl /opt/cmcl
COPY --from=service-venv /build/sbom.cdx.json /opt/cmcl/sbom.cdx.json
COPY --from=app /app /opt/cmcl
# The default, 127.0.0.1, cannot be reached from outside a container. The service then starts only with
# CMCL_BEHIND_PROXY; `python -m cmcl.service_proxy` in another container of this image is such a proxy.
ENV CMCL_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="cmcl service" \
      org.opencontainers.image.description="Takes datasets over HTTP and turns them into versions" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
ENTRYPOINT ["python", "-m", "service"]
