"""What all Kubernetes manifests share: names, labels, the container of a qserve process, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qserve.config import supervised_env
from qserve.generate.stack import Stack, is_alive, is_ready
from qserve.generate.text import dump

# One Secret: `secret-key` is a file of the processes; `redis-url` and `redis-password` are there if the URL has one.
SECRET = "qserve"  # noqa: S105 (its name, not a key)
VALKEY = "qserve-valkey"
_KEYS = "/run/qserve"
# The user of the image; numeric, for Kubernetes must see that it is not root.
_USER = 10001


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object, and the reasons of what stands in it."""

    body: dict[str, Any]
    why: str = ""


def write(manifests: Iterable[Manifest]) -> str:
    """The text of a file with these objects."""
    return "---\n".join(dump(manifest.body, comment=manifest.why) for manifest in manifests)


def name_of(component: str) -> str:
    """What the objects of a component are called."""
    return f"qserve-{component}"


def selector(component: str) -> dict[str, str]:
    """The labels by which a component's pods are found."""
    return {"app.kubernetes.io/name": "qserve", "app.kubernetes.io/component": component}


def metadata(component: str) -> dict[str, Any]:
    """Name and labels of an object of the component."""
    return {"name": name_of(component), "labels": selector(component)}


@dataclass(frozen=True, slots=True)
class Rolling:
    """How many pods there are, and how they are replaced: how many more than these, how many fewer.

    replicas  None: a scaler's alone, for each apply would set it back
    """

    replicas: int | None
    surge: int = 1
    unavailable: int = 0

    def spec(self) -> dict[str, Any]:
        """The fields of a Deployment."""
        limits = {"maxSurge": self.surge, "maxUnavailable": self.unavailable}
        count = {} if self.replicas is None else {"replicas": self.replicas}
        # One pod that ends right after it was ready is no success.
        return {**count, "minReadySeconds": 10, "strategy": {"type": "RollingUpdate", "rollingUpdate": limits}}


def unprivileged(user: int, grace_s: int) -> dict[str, Any]:
    """What every pod begins with: the time it has to end, and no more rights than it needs, as this user."""
    return {
        "terminationGracePeriodSeconds": grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def workload(stack: Stack, component: str, process: dict[str, Any], rolling: Rolling) -> dict[str, Any]:
    """A Deployment of one container."""
    pod: dict[str, Any] = {
        **unprivileged(_USER, stack.grace_s),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(component)},
            }
        ],
        "containers": [process],
        "volumes": [
            {"name": "keys", "secret": {"secretName": SECRET, "items": [_key_item()], "defaultMode": 0o440}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(component),
        "spec": {
            **rolling.spec(),
            "selector": {"matchLabels": selector(component)},
            "template": {"metadata": {"labels": selector(component)}, "spec": pod},
        },
    }


def container(stack: Stack, component: str, command: list[str], resources: dict[str, Any]) -> dict[str, Any]:
    """A process of ours, with what it needs to find its cluster."""
    return {
        "name": component,
        "image": stack.image,
        "command": [word.replace("$(", "$$(") for word in command],
        "env": _env(stack),
        "resources": resources,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "keys", "mountPath": _KEYS, "readOnly": True}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 (the container's own)
    }


def probes() -> dict[str, Any]:
    """By the heartbeat file: no Python is started and no server asked. A Redis that is away restarts no pod."""
    return {
        "startupProbe": _shell(is_ready(), every_s=2, failures=60),
        "livenessProbe": _shell(is_alive(), every_s=10, failures=3),
        "readinessProbe": _shell(is_ready(), every_s=5, failures=2),
    }


def disruption_budget(component: str) -> Manifest:
    """One pod at a time leaves when nodes are drained: the others have its replicas by then."""
    body = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(component),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(component)}},
    }
    return Manifest(body, "When nodes are drained, one pod at a time leaves.")


def _shell(test: str, *, every_s: int, failures: int) -> dict[str, Any]:
    return {
        "exec": {"command": ["sh", "-c", test]},
        "periodSeconds": every_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _key_item() -> dict[str, str]:
    return {"key": "secret-key", "path": "secret-key"}


def _env(stack: Stack) -> list[dict[str, Any]]:
    url = f"redis://{VALKEY}:6379/0" if stack.redis_url is None else stack.redis_url
    plain = supervised_env(redis_url=url, namespace=stack.namespace, secret_file=f"{_KEYS}/secret-key")
    if not stack.hides_url:
        return [{"name": name, "value": value} for name, value in plain.items()]
    reference = {"secretKeyRef": {"name": SECRET, "key": "redis-url"}}
    return [
        {"name": name, "valueFrom": reference} if value == url else {"name": name, "value": value}
        for name, value in plain.items()
    ]
