# llama-supervisor on llama.cpp's server image, whose llama-server runs in place:
#
#     docker build --tag llama-supervisor-cuda:0.1.0 \
#         --build-arg LLAMA_IMAGE=ghcr.io/ggml-org/llama.cpp:server-cuda .
#
# LLAMA_IMAGE: `server` (CPU), `server-cuda`, `server-rocm`; better one pinned as TAG@sha256:…
ARG LLAMA_IMAGE=ghcr.io/ggml-org/llama.cpp:server

FROM ${LLAMA_IMAGE} AS python
# The distribution is the base's, and so are its versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 tini \
    && rm -rf /var/lib/apt/lists/*

FROM python AS builder
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock ./
# The lock without what only the embedded engine (xllamacpp) and the demo models (the others) need.
RUN python3 -m venv --without-pip /opt/llama-supervisor \
    && awk '/^[a-z]/ { out = /^(xllamacpp|gguf|requests|charset-normalizer)==/ } !out' \
        requirements.lock >image.lock \
    && pip --python /opt/llama-supervisor/bin/python install --no-cache-dir --require-hashes \
        --requirement image.lock
COPY pyproject.toml README.md LICENSE ./
COPY supervisor ./supervisor
RUN pip --python /opt/llama-supervisor/bin/python install --no-cache-dir --no-deps . \
    && /opt/llama-supervisor/bin/llama-supervisor serve --help >/dev/null

FROM python
ARG LLAMA_IMAGE
# The base's labels would describe llama.cpp.
LABEL org.opencontainers.image.title="llama-supervisor" \
      org.opencontainers.image.description="Switches llama-server between generation and embedding" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${LLAMA_IMAGE}" \
      org.opencontainers.image.version="" \
      org.opencontainers.image.revision="" \
      org.opencontainers.image.created="" \
      org.opencontainers.image.url="" \
      org.opencontainers.image.source=""
COPY --from=builder /opt/llama-supervisor /opt/llama-supervisor
COPY profiles /etc/llama-supervisor
# A named volume at /data begins as a copy of this folder, and so belongs to the user. On PATH, so
# that `kubectl exec … -- llama-supervisor doctor` works.
RUN install --directory --owner=10001 --group=10001 /data /models \
    && ln --symbolic /opt/llama-supervisor/bin/llama-supervisor /usr/local/bin/llama-supervisor
# The base's LLAMA_ARG_HOST=0.0.0.0 stays set: the controller clears it for the servers it starts.
ENV LLAMA_SERVER_BIN=/app/llama-server \
    HOME=/tmp
WORKDIR /
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s CMD ["curl", "--fail", "--silent", "http://127.0.0.1:8000/health"]
# tini reaps what the servers' own children leave behind.
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/llama-supervisor/bin/llama-supervisor"]
CMD ["serve", "--host=0.0.0.0", "--profiles=/etc/llama-supervisor", "--models=/models", "--data=/data/llama-supervisor"]
