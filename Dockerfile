# The five processes of the mesh, a target for each: docker build --target upload --tag twotruths-upload:0.1.0 .
# What they need is in requirements/, with hashes. How Kubernetes runs and probes them is in k8s/.

# Any Debian with Python 3.11 or newer, its venv module and libstdc++6.
ARG BASE=python:3.11-slim

# The secrets pip and ca are for builders with an index, a proxy or an authority of their own: a pip.conf and PEM
# certificates. Without them pip does as it does by itself.
FROM ${BASE} AS build
WORKDIR /source
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /build && python3 -m venv --without-pip /app
COPY requirements requirements
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/secrets/ca \
    /build/bin/pip install --quiet --no-compile --require-hashes --requirement requirements/build.txt \
    && /build/bin/pip --python /app/bin/python install --quiet --require-hashes --requirement requirements/runtime.txt
COPY . .
RUN /build/bin/pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir /wheels . \
    && /build/bin/pip --python /app/bin/python install --quiet --no-deps --no-index /wheels/*.whl

# Only a worker decodes.
FROM build AS build-without-codecs
RUN /build/bin/pip --python /app/bin/python uninstall --quiet --yes av

FROM ${BASE} AS process
# What services/common/malloc.py does for processes that were started without: megabyte messages stay on the heap.
ENV MALLOC_ARENA_MAX=2 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TOP_PAD_=16777216 MALLOC_TRIM_THRESHOLD_=268435456
ENV PATH=/app/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 10001:10001

FROM process AS service
COPY --from=build-without-codecs /app /app

FROM service AS upload
ENTRYPOINT ["python", "-m", "services.upload"]

FROM service AS merge
ENTRYPOINT ["python", "-m", "services.merge"]

FROM service AS challenge
ENTRYPOINT ["python", "-m", "services.challenge"]

FROM service AS gateway
ENTRYPOINT ["python", "-m", "services.gateway"]

FROM process AS worker
COPY --from=build /app /app
ENTRYPOINT ["python", "-m", "services.merge", "worker"]
