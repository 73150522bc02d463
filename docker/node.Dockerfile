# The image of every node (lock, queue, cache): `dss node`, all settings from the environment.
# Build from the repository's root: docker build -f docker/node.Dockerfile -t dss-node:0.1.0 .

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/dss
WORKDIR /src
# Dependencies first: a change of the code alone does not fetch them again.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > dependencies.txt \
 && /opt/dss/bin/pip install -r dependencies.txt
COPY LICENSE ./
COPY nodes nodes
# The package's metadata names the README; its text is not needed here.
RUN touch README.md \
 && /opt/dss/bin/pip install --no-deps . \
 && /opt/dss/bin/python -m compileall -q /opt/dss/lib

FROM python:3.11-slim-bookworm
# A fixed number, so that volumes keep their owner from one image to the next.
RUN mkdir -p /data && chown 10001:10001 /data
COPY --from=build /opt/dss /opt/dss
COPY docker/healthcheck.py /opt/dss/healthcheck.py
ENV PATH=/opt/dss/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BIND_HOST=0.0.0.0 \
    DATA_DIR=/data
USER 10001:10001
VOLUME /data
EXPOSE 8000 9000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=6 \
    CMD ["python", "-I", "-S", "/opt/dss/healthcheck.py"]
ENTRYPOINT ["dss", "node"]
