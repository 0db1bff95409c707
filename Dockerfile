# Answer questions from a store on CPUs:
#   docker build -t btr .
#   docker run --rm -v "$PWD:/store" --user "$(id -u)" btr precompute passages.jsonl --store corpus.btr
#   docker run --rm -p 127.0.0.1:8080:8080 -v "$PWD:/store:ro" btr
# Without keys everybody who reaches the port may ask: publish it beyond this machine with --keys-file (see the README).
FROM python:3.13-slim AS build
WORKDIR /src
COPY setup.py pyproject.toml LICENSE README.md ./
COPY btr btr
COPY corpus corpus
COPY kernels kernels
COPY storage storage
COPY train train
# torch first, from PyTorch's index of CPU builds: what PyPI has brings gigabytes of CUDA
RUN python -m venv /opt/btr \
    && /opt/btr/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.9,<2.14" \
    && /opt/btr/bin/pip install --no-cache-dir ".[mcp]"

FROM python:3.13-slim
COPY --from=build /opt/btr /opt/btr
RUN useradd --uid 10001 --create-home btr && install -d -o btr /store
# a cache that any user of --user can write: of compiled kernels and of what is fetched from the hub
ENV PATH="/opt/btr/bin:$PATH" NUMBA_CACHE_DIR=/tmp/numba HF_HOME=/tmp/huggingface
USER btr
WORKDIR /store
VOLUME /store
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["btr"]
CMD ["serve", "/store/corpus.btr", "--host", "0.0.0.0", "--port", "8080"]
