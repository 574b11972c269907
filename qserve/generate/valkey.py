"""A Valkey in Kubernetes: one pod with a disk. Good for a beginning; a managed server or Sentinel outlives its node."""

from __future__ import annotations

from typing import Any

from qserve.generate.manifest import VALKEY, Manifest, metadata, selector, unprivileged
from qserve.generate.stack import VALKEY as COMMAND
from qserve.generate.stack import VALKEY_IMAGE

_MEMORY_MIB = 2048
# The rest is for what a fork copies while the file is rewritten, and for buffers.
_MOST_MIB = 1200
_COMPONENT = "valkey"
_USER = 999  # of the image
_GRACE_S = 60  # to write what it holds
_PORT = 6379
_WHY = f"""
One server with a disk: its pod may move, its data stays. A full server refuses new calls and loses none (noeviction);
running calls still finish. maxmemory is {_MOST_MIB} MiB of the pod's {_MEMORY_MIB}: a rewrite of its file copies what
changes meanwhile. It has no password: let only your pods reach it (a NetworkPolicy). Calls are signed, so a stranger
cannot run code, but could delete them.
"""


def manifests() -> list[Manifest]:
    """The server, and the name by which others find it."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(_COMPONENT),
        "spec": {
            "selector": selector(_COMPONENT),
            "ports": [{"name": "redis", "port": _PORT, "targetPort": "redis"}],
        },
    }
    assert service["metadata"]["name"] == VALKEY  # type: ignore[index]  # a dict of dicts and strings
    return [Manifest(service), Manifest(_server(), _WHY)]


def _server() -> dict[str, Any]:
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(_COMPONENT),
        "spec": {
            "replicas": 1,
            "serviceName": VALKEY,
            "selector": {"matchLabels": selector(_COMPONENT)},
            "template": {"metadata": {"labels": selector(_COMPONENT)}, "spec": _pod()},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
        },
    }


def _pod() -> dict[str, Any]:
    ping = {"exec": {"command": ["sh", "-c", "valkey-cli ping | grep -q PONG"]}, "timeoutSeconds": 5}
    container = {
        "name": _COMPONENT,
        "image": VALKEY_IMAGE,
        "command": [*COMMAND, "--maxmemory", f"{_MOST_MIB}mb", "--dir", "/data"],
        "ports": [{"name": "redis", "containerPort": _PORT}],
        # Loading a large file takes its time: ten minutes of it are no failure.
        "startupProbe": ping | {"periodSeconds": 5, "failureThreshold": 120},
        "readinessProbe": ping | {"periodSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {"tcpSocket": {"port": "redis"}, "periodSeconds": 10, "failureThreshold": 6},
        "resources": {
            "requests": {"cpu": "500m", "memory": f"{_MEMORY_MIB}Mi"},
            "limits": {"memory": f"{_MEMORY_MIB}Mi"},
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return {**unprivileged(_USER, _GRACE_S), "containers": [container]}
