# One image for every role: worker, autoscaler, deploy and web service differ only in their command (docker-compose.yml).
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
RUN python -m venv /opt/qserve
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY qserve qserve
RUN --mount=type=cache,target=/root/.cache/pip /opt/qserve/bin/pip install '.[demo,fast]'

FROM python:${PYTHON_VERSION}-slim
RUN useradd --uid 10001 --user-group --create-home qserve
COPY --from=build /opt/qserve /opt/qserve
WORKDIR /app
# Replicas load applications by import path: all hosts have the same modules.
COPY workers workers
ENV PATH=/opt/qserve/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1
# By number, so that an orchestrator can tell that it is not root.
USER 10001:10001
CMD ["qserve", "worker"]
