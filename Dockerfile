# One image for the pipeline's steps and the server, with two targets: `cpu`, and `cuda`, the last and default one.
# `make image` builds one of them with docker, podman or buildah. In production, set the base by digest.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS requirements
WORKDIR /src
COPY pyproject.toml ./
# Dependencies change less often than the code or the version, so they have a separate file and layer.
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *(r for g, rs in p['optional-dependencies'].items() if g != 'dev' for r in rs if not r.startswith('fovea[')), sep='\n')" > requirements.txt

FROM ${BASE_IMAGE} AS environment
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python3 -m venv /opt/fovea
COPY constraints.txt ./
COPY --from=requirements /src/requirements.txt ./

# The common part of both targets, without the packages.
FROM ${BASE_IMAGE} AS base
LABEL org.opencontainers.image.title="fovea" \
      org.opencontainers.image.description="Fine-tune and serve Phi-3-Vision on pictures of products" \
      org.opencontainers.image.licenses="Apache-2.0"
# A number, because Kubernetes cannot verify that a name is not root. Group 0, which every user has, can write the home.
RUN useradd --uid 10001 --gid 0 --create-home --home-dir /home/fovea --shell /usr/sbin/nologin fovea \
    && chmod 0775 /home/fovea
ENV PATH=/opt/fovea/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/home/fovea
WORKDIR /app
EXPOSE 8080
CMD ["fovea", "--help"]

FROM environment AS environment-cpu
# torch without CUDA: 0.2 GB instead of 5.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" /opt/fovea/bin/python -m pip install -c constraints.txt -r requirements.txt \
    && /opt/fovea/bin/python -m pip uninstall -y pip setuptools
RUN printf '#!/bin/sh\nexec /opt/fovea/bin/python -P -m cli.main "$@"\n' > /opt/fovea/bin/fovea && chmod 0755 /opt/fovea/bin/fovea

FROM base AS cpu
COPY --from=environment-cpu /opt/fovea /opt/fovea
COPY fovea ./fovea
COPY sample ./sample
COPY components ./components
COPY pipelines ./pipelines
COPY serving ./serving
COPY cli ./cli
USER 10001:0
# Last, because it changes with every commit: the packages' layer stays the same.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

FROM environment AS environment-cuda
# torch from PyPI includes the CUDA libraries; the driver comes from the node.
RUN /opt/fovea/bin/python -m pip install -c constraints.txt -r requirements.txt \
    && /opt/fovea/bin/python -m pip uninstall -y pip setuptools
RUN printf '#!/bin/sh\nexec /opt/fovea/bin/python -P -m cli.main "$@"\n' > /opt/fovea/bin/fovea && chmod 0755 /opt/fovea/bin/fovea

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=environment-cuda /opt/fovea /opt/fovea
COPY fovea ./fovea
COPY sample ./sample
COPY components ./components
COPY pipelines ./pipelines
COPY serving ./serving
COPY cli ./cli
USER 10001:0
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
