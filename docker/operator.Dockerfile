# The operator's image: `python -m dss_operator`, all settings from the environment.
# Build from the repository's root: docker build -f docker/operator.Dockerfile -t dss-operator:0.1.0 .

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Only the packages are carried over, so neither pip nor a venv's scripts come along.
WORKDIR /src
# Dependencies first: a change of the code alone does not fetch them again. Of the nodes' ones the
# operator needs three: it starts no event loop of uvloop's, speaks no Redis, writes no log records.
COPY pyproject.toml ./
RUN python -c "import re, tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*(d for d in p['dependencies'] if re.match('(aiohttp|msgspec|prometheus-client)[>=]', d)), \
*p['optional-dependencies']['operator'], sep='\n')" > dependencies.txt \
 && pip install --target /opt/dss -r dependencies.txt \
 && rm -rf /opt/dss/bin
COPY nodes/dss/__init__.py nodes/dss/py.typed /opt/dss/dss/
COPY nodes/dss/base /opt/dss/dss/base
COPY nodes/dss/topology /opt/dss/dss/topology
COPY nodes/dss/remediation /opt/dss/dss/remediation
COPY operator/dss_operator /opt/dss/dss_operator
COPY LICENSE /opt/dss/LICENSE
# The Kubernetes client's 1,500 modules of models and API groups go: the operator speaks in dicts
# over the client's connection alone (120 MB). Compiled here: the file system is read-only later.
RUN find /opt/dss/kubernetes -path '*client/models/*.py' ! -name __init__.py -delete \
 && find /opt/dss/kubernetes -path '*client/api/*.py' ! -name __init__.py -delete \
 && find /opt/dss -name __pycache__ -prune -exec rm -r {} + \
 && python -m compileall -q /opt/dss \
 && PYTHONPATH=/opt/dss python -c "import dss_operator.handlers, dss_operator.runtime; \
from kubernetes.aio import config; from kubernetes.aio.client import ApiClient, Configuration; \
ApiClient(Configuration())"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/dss /opt/dss
ENV PYTHONPATH=/opt/dss \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
# 8080: /metrics, 8081: /healthz
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "dss_operator"]
