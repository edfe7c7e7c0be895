# One image for every command: agents, worker, topics, train. torch's wheel carries CUDA, so it is some 6 GB large.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements requirements
RUN pip install --no-cache-dir --require-hashes --requirement requirements/build.txt && python -m venv /opt/stream-rec
# What is large first, so that a change of the code alone does not install torch again.
COPY pyproject.toml ./
RUN uv pip install --python /opt/stream-rec/bin/python --no-cache --compile-bytecode \
    --require-hashes --constraints requirements/all.txt --requirements pyproject.toml --extra local --extra rocksdb
COPY README.md LICENSE ./
COPY stream_rec stream_rec
RUN uv pip install --python /opt/stream-rec/bin/python --no-cache --compile-bytecode \
    --no-deps --build-constraints requirements/build.txt .

FROM python:3.11-slim-bookworm
# On a GPU, Triton builds with a C compiler what starts a kernel. Debian's archive keeps no version for long,
# so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/stream-rec stream-rec
COPY --from=build /opt/stream-rec /opt/stream-rec
# /metrics listens on the container's own network, for Prometheus; no port of it is published to the host.
ENV PATH=/opt/stream-rec/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    STREAM_REC_METRICS_HOST=0.0.0.0 \
    STREAM_REC_CACHE_DIR=/var/lib/stream-rec \
    STREAM_REC_MODEL=/model
USER 10001
WORKDIR /var/lib/stream-rec
ENTRYPOINT ["stream-rec"]
CMD ["--help"]
