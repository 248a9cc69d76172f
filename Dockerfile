# kdtool and all it needs, for NVIDIA GPUs (target cuda, the default) or for CPUs alone (target cpu).
#
#   docker build --tag kdtool .
#   docker run --rm kdtool                                            the quickstart
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" \
#     -v "$PWD/data:/data:ro" -v "$PWD/caches:/cache" -v "$PWD/runs:/runs" kdtool teach --help
#
# Folders that are mounted are made before (mkdir -p caches runs): docker makes them root's. On several GPUs:
#   docker run ... --gpus all --ipc=host --entrypoint torchrun kdtool --nproc-per-node 4 -m -- kdtool extract ...
#
# Works with --read-only --tmpfs /tmp --network none. `docker stop --time 300` lets it finish the step or block it is at;
# the same command goes on from there.
#
# Wheels for CPUs alone take a tenth of the room, and lie in an index of their own:
#   make lock TORCH_INDEX=https://...                 names them, with their hashes, in requirements-cpu.lock
#   docker build --target cpu --build-arg TORCH_INDEX=https://... --tag kdtool:cpu .
# Without that index cpu has the same wheels as cuda.
#
# To pin the base image to the byte, look its digest up where you build (docker buildx imagetools inspect BASE) and add
#   --build-arg BASE=python:3.12.11-slim-bookworm@sha256:DIGEST
ARG BASE=python:3.12.11-slim-bookworm

FROM ${BASE} AS place
# Folders first, then VOLUME: a volume takes the owner that its folder has at that moment.
RUN groupadd --gid 1000 kdtool && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp kdtool \
 && mkdir /data /cache /runs && chown 1000:1000 /data /cache /runs
VOLUME ["/data", "/cache", "/runs"]
# USER for torch, which asks for a name even where --user gives a number that has none.
# What is known of pictures that were looked at lies with the runs, so that the next command need not look again.
ENV HOME=/tmp XDG_CACHE_HOME=/runs/.cache MPLCONFIGDIR=/tmp/matplotlib USER=kdtool PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /runs
STOPSIGNAL SIGTERM
ENTRYPOINT ["kdtool"]
CMD ["quickstart", "--folder", "/runs/quickstart"]
LABEL org.opencontainers.image.title="kdtool" \
      org.opencontainers.image.description="Knowledge distillation of image classifiers from a teacher cache that is computed once" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM ${BASE} AS source
COPY . /usr/src/kdtool

# The lock comes before the source: a change of the source does not install 5 GB anew.
FROM place AS cpu
ARG TORCH_INDEX
COPY requirements-cpu.lock /usr/src/
RUN if [ -n "${TORCH_INDEX}" ] && ! grep -q '^torch==[^ ]*+' /usr/src/requirements-cpu.lock; then \
      echo "requirements-cpu.lock does not name the wheels of that index: make lock TORCH_INDEX=${TORCH_INDEX}" >&2; exit 1; \
    fi; \
    pip install --no-cache-dir --root-user-action=ignore ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
      --require-hashes --requirement /usr/src/requirements-cpu.lock
RUN --mount=from=source,source=/usr/src/kdtool,target=/usr/src/kdtool,rw \
    pip install --no-cache-dir --root-user-action=ignore --no-deps --no-build-isolation /usr/src/kdtool
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.revision="${REVISION}" org.opencontainers.image.version="${VERSION}"
USER 1000:1000

FROM place AS cuda
COPY requirements-cuda.lock /usr/src/
RUN pip install --no-cache-dir --root-user-action=ignore --require-hashes --requirement /usr/src/requirements-cuda.lock
RUN --mount=from=source,source=/usr/src/kdtool,target=/usr/src/kdtool,rw \
    pip install --no-cache-dir --root-user-action=ignore --no-deps --no-build-isolation /usr/src/kdtool
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.revision="${REVISION}" org.opencontainers.image.version="${VERSION}"
USER 1000:1000
