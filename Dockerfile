# kdtool and all it needs, on CPUs and NVIDIA GPUs.
#
#   docker build --tag kdtool .
#   docker run --rm kdtool                                            the quickstart
#   docker run --rm --gpus all --init --user "$(id -u):$(id -g)" \
#     -v "$PWD/data:/data:ro" -v "$PWD/cache:/cache" -v "$PWD/runs:/runs" kdtool teach --help
#
# Works with --read-only --tmpfs /tmp --network none. To pin the base image to the byte, look its digest up where you
# build (docker buildx imagetools inspect python:3.12-slim-bookworm) and add
#   --build-arg BASE=python:3.12-slim-bookworm@sha256:DIGEST
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

ARG REVISION=unknown
LABEL org.opencontainers.image.title="kdtool" \
      org.opencontainers.image.description="Knowledge distillation of image classifiers from a teacher cache that is computed once" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"

# The lock comes first: a change of the source does not install 5 GB anew.
COPY requirements.lock /usr/src/kdtool/
RUN pip install --no-cache-dir --root-user-action=ignore --require-hashes --requirement /usr/src/kdtool/requirements.lock

COPY pyproject.toml README.md LICENSE /usr/src/kdtool/
COPY kdtool /usr/src/kdtool/kdtool
COPY cli /usr/src/kdtool/cli
COPY cache /usr/src/kdtool/cache
RUN pip install --no-cache-dir --root-user-action=ignore --no-deps --no-build-isolation /usr/src/kdtool \
 && rm -rf /usr/src/kdtool/build /usr/src/kdtool/*.egg-info

# Folders first, then VOLUME: a volume takes the owner that its folder has at that moment.
RUN groupadd --gid 1000 kdtool && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp kdtool \
 && mkdir /data /cache /runs && chown 1000:1000 /data /cache /runs
VOLUME ["/data", "/cache", "/runs"]

# USER for torch, which asks for a name even where --user gives a number that has none.
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib USER=kdtool PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /runs
STOPSIGNAL SIGTERM
ENTRYPOINT ["kdtool"]
CMD ["quickstart", "--folder", "/runs/quickstart"]
