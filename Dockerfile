# A server over an exported bundle, which is mounted at /data (docs/operations.md):
#
#     docker build -t tiger_jax .
#     docker build -t tiger_jax:cuda --build-arg ACCELERATOR=cuda13 .
#     docker run --read-only --tmpfs /tmp -v "$PWD/runs/my_shop:/data" \
#         -p 127.0.0.1:8000:8000 tiger_jax
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG ACCELERATOR=cpu
COPY requirements/build.txt requirements/demo.txt /src/requirements/
WORKDIR /src
# Source distributions are built by the pinned tools, without looking for others.
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt \
    && /venv/bin/pip install --no-cache-dir --require-hashes --no-build-isolation \
        -r requirements/demo.txt
COPY setup.cfg pyproject.toml README.md LICENSE run.py ./
COPY tiger_jax tiger_jax
COPY tasks tasks
COPY gin_configs gin_configs
RUN if [ "$ACCELERATOR" != cpu ]; then \
        /venv/bin/pip install --no-cache-dir "jax[$ACCELERATOR]==$(/venv/bin/python -c \
            'import importlib.metadata as m; print(m.version("jax"))')"; \
    fi

FROM python:${PYTHON}-slim
RUN useradd --uid 10001 --create-home tiger && mkdir /data && chown tiger /data
COPY --from=build /venv /venv
COPY --from=build /src /app
WORKDIR /app
USER 10001
# What is compiled is kept beside the bundle, so that a restart takes seconds; nobody
# but the server may write there, since it is code.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    TMPDIR=/tmp HOME=/tmp JAX_COMPILATION_CACHE_DIR=/data/compiled
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["python", "run.py", "--stage=serve", "--workdir=/data", "--gin.serve.log_format='json'"]
CMD ["--gin.serve.host='0.0.0.0'"]
