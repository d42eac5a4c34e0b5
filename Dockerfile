# The node, its tools and the client in one image.
#
#   make image                              with whatever BASE_IMAGE, IMAGE, TAG and DOCKER_BUILD_FLAGS say
#   docker build --build-arg BASE_IMAGE=... .
#
# No `# syntax=` line and no `RUN --mount`: the legacy builder and builds without a registry work. Slim rather than
# distroless, because `kubectl exec -it kv-0 -- sh` and `kv` are how people look inside.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# The dependencies first: this layer is rebuilt only when the lock changes.
COPY requirements.lock ./
RUN python3 -m venv --without-pip /opt/kvorum \
 && python3 -m pip --python /opt/kvorum/bin/python install -q --no-compile --require-hashes -r requirements.lock
# The build backend, locked as well, in a folder of its own that stays behind.
COPY requirements-build.lock ./
RUN python3 -m pip install -q --target /opt/backend --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md ./
COPY service service
COPY client client
RUN PYTHONPATH=/opt/backend python3 -m pip --python /opt/kvorum/bin/python \
      install -q --no-compile --no-deps --no-build-isolation . \
 && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/kvorum/lib

FROM ${BASE_IMAGE}
ARG VERSION=0.6.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kvorum" \
      org.opencontainers.image.description="A linearizable key-value store that operates itself on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The root file system is read-only in the chart: nothing is compiled or cached at run time.
ENV PATH=/opt/kvorum/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    KVORUM_BUILD_REVISION=${REVISION}
COPY --from=build /opt/kvorum /opt/kvorum
RUN mkdir -p /data && chown 10001:10001 /data && chmod 0700 /data
USER 10001:10001
WORKDIR /data
EXPOSE 8001 8002 9001
ENTRYPOINT ["kvorum"]
CMD ["serve"]
