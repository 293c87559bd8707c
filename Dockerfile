ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/fovea
COPY pyproject.toml constraints.txt ./
# The dependencies alone first: they change less often than the code.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['platform'], 'hatchling', sep='\n')" > requirements.txt \
    && /opt/fovea/bin/python -m pip install -c constraints.txt -r requirements.txt
COPY README.md ./
COPY fovea ./fovea
RUN /opt/fovea/bin/python -m pip install --no-deps --no-build-isolation . \
    && /opt/fovea/bin/python -m pip uninstall -y pip hatchling

FROM ${BASE_IMAGE} AS cpu
LABEL org.opencontainers.image.title="fovea" \
      org.opencontainers.image.description="Fine-tune and serve Phi-3-Vision on pictures of products" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --create-home --home-dir /home/fovea fovea
COPY --from=build /opt/fovea /opt/fovea
WORKDIR /app
COPY components ./components
COPY pipelines ./pipelines
COPY serving ./serving
COPY cli ./cli
ENV PATH=/opt/fovea/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 HOME=/home/fovea
USER 10001:10001
EXPOSE 8080
CMD ["python", "-m", "serving", "--help"]
