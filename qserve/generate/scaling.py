"""What scales the workers in Kubernetes: KEDA by the calls in Redis, or an HPA by CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qserve.errors import UsageError
from qserve.generate.manifest import SECRET, VALKEY, Manifest, metadata, name_of
from qserve.generate.stack import Pool, Stack
from qserve.wire.keys import deployment_keys

_AUTHENTICATION = "redis"
_CPU_PERCENT = 70
_WHY_AUTHENTICATION = "KEDA asks Redis itself, and takes its credentials from the same Secret."
_WHY_KEDA = """
Needs KEDA 2.11 or newer in the cluster. A call stands in its stream until it has finished: the length is what waits and
what runs, and streamLength is how many of these one worker should carry (no consumerGroup here: with one KEDA counts
otherwise). `front` holds the calls that were handed back. The largest wish of all triggers counts.
There is no fallback on purpose: while Redis cannot be asked, the number of workers stays as it is.
"""
_WHY_KEDA_AUTOSCALER = """
The autoscaler says how many replicas there are, KEDA how many workers are there to host them: give it more workers than
calls need, rather than fewer, and let max_replicas be the limit.
"""
_WHY_HPA = f"""
Needs metrics-server in the cluster. It keeps the workers at {_CPU_PERCENT} % of the CPU that they request: right where
calls compute. Calls that wait for a GPU, a disk or a network use no CPU, and calls that wait for a replica use none at
all: then scale by the calls themselves (`--scaler keda`). It cannot scale to zero.
"""


@dataclass(frozen=True, slots=True)
class Scaling:
    """What changes the number of workers.

    kind         "none", "keda" or "hpa"
    calls        (application, deployment) -> calls, waiting and running, that one worker should carry; for KEDA
    max_workers  of each pool; Stack.workers is the least
    """

    kind: str = "none"
    calls: Mapping[tuple[str, str], int] = field(default_factory=dict)
    max_workers: int = 10

    def scales(self, pool: Pool) -> bool:
        """Whether the number of this pool's workers is the scaler's."""
        return self.kind == "hpa" or (self.kind == "keda" and any(pool.admits(*path) for path in self.calls))


def manifests(stack: Stack, scaled: Scaling) -> list[Manifest]:
    """A scaler for each pool. Raises UsageError for numbers that no scaler can keep, or calls that no pool takes."""
    if scaled.kind == "none":
        return []
    if scaled.max_workers < stack.workers:
        raise UsageError(f"--max-workers {scaled.max_workers} is below --workers {stack.workers}, the least of them.")
    if scaled.kind == "hpa":
        return [_by_cpu(stack, scaled, pool) for pool in stack.pools]
    if not scaled.calls:
        raise UsageError(
            "KEDA needs to know what to count: --scale-on APP.DEPLOYMENT=CALLS, how many a worker carries."
        )
    if strangers := [f"{app}.{name}" for app, name in scaled.calls if not _is_hosted(stack, app, name)]:
        raise UsageError(
            f"--scale-on {strangers[0]}: no worker hosts it, by --deployments or by --replicas and --name."
        )
    scalers = [_by_calls(stack, scaled, pool) for pool in stack.pools if scaled.scales(pool)]
    return [*([_authentication()] if stack.hides_url else []), *scalers]


def _is_hosted(stack: Stack, app: str, deployment: str) -> bool:
    if stack.is_fixed:
        return app == stack.name and deployment in stack.replicas
    return any(pool.admits(app, deployment) for pool in stack.pools)


def _by_calls(stack: Stack, scaled: Scaling, pool: Pool) -> Manifest:
    triggers = [
        _trigger(stack, stream, calls)
        for (app, deployment), calls in scaled.calls.items()
        if pool.admits(app, deployment)
        for stream in _streams(stack, app, deployment)
    ]
    body = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata(pool.name),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name_of(pool.name)},
            "pollingInterval": 10,
            "minReplicaCount": stack.workers,
            "maxReplicaCount": scaled.max_workers,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior()}},
            "triggers": triggers,
        },
    }
    return Manifest(body, _WHY_KEDA if stack.is_fixed else _WHY_KEDA + _WHY_KEDA_AUTOSCALER)


def _streams(stack: Stack, app: str, deployment: str) -> tuple[str, str]:
    keys = deployment_keys(stack.namespace, app, deployment)
    return keys.calls, keys.front


def _trigger(stack: Stack, stream: str, calls: int) -> dict[str, Any]:
    """KEDA takes all values as text."""
    trigger: dict[str, Any] = {
        "type": "redis-sentinel-streams" if stack.redis_url and stack.endpoint.sentinels else "redis-streams",
        "metadata": _address(stack) | {"stream": stream, "streamLength": str(calls)},
    }
    if stack.hides_url:
        trigger["authenticationRef"] = {"name": name_of(_AUTHENTICATION)}
    return trigger


def _address(stack: Stack) -> dict[str, str]:
    if stack.redis_url is None:
        return {"address": f"{VALKEY}:6379", "databaseIndex": "0"}
    endpoint = stack.endpoint
    where = {"databaseIndex": str(endpoint.db)} | ({"username": endpoint.username} if endpoint.username else {})
    if endpoint.sentinels:
        hosts = ",".join(f"{host}:{port}" for host, port in endpoint.sentinels)
        return {"addresses": hosts, "sentinelMaster": endpoint.service, **where}
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return {"address": f"{host}:{endpoint.port}", **where} | ({"enableTLS": "true"} if endpoint.tls else {})


def _authentication() -> Manifest:
    password = {"parameter": "password", "name": SECRET, "key": "redis-password"}
    body = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "TriggerAuthentication",
        "metadata": metadata(_AUTHENTICATION),
        "spec": {"secretTargetRef": [password]},
    }
    return Manifest(body, _WHY_AUTHENTICATION)


def _by_cpu(stack: Stack, scaled: Scaling, pool: Pool) -> Manifest:
    target = {"type": "Utilization", "averageUtilization": _CPU_PERCENT}
    body = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(pool.name),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name_of(pool.name)},
            "minReplicas": stack.workers,
            "maxReplicas": scaled.max_workers,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
            "behavior": _behavior(),
        },
    }
    return Manifest(body, _WHY_HPA)


def _behavior() -> dict[str, Any]:
    """Up at once; down slowly: a worker that leaves moves its replicas, and models take long to load."""
    slowly = {"type": "Pods", "value": 1, "periodSeconds": 60}
    return {"scaleDown": {"stabilizationWindowSeconds": 300, "policies": [slowly]}}
