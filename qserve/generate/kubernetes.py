"""Manifests for Kubernetes, without a namespace: `kubectl apply --namespace ...` says where."""

from __future__ import annotations

from typing import Any

from qserve.generate import scaling, valkey
from qserve.generate.manifest import (
    SECRET,
    Manifest,
    Rolling,
    container,
    disruption_budget,
    probes,
    selector,
    workload,
    write,
)
from qserve.generate.scaling import Scaling
from qserve.generate.stack import DAEMONS, HEARTBEAT_FILE, Pool, Stack
from qserve.generate.text import note

# What a worker is given where nothing is said: without requests nodes are overbooked, and an HPA has nothing to go by.
_CPUS, _MEMORY_MIB = 2.0, 4096
_SMALL = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
_WHY_WORKER = """
TERM drains: running calls finish, the rest is handed back, and the grace period is longer than that takes.
It offers what it requests here (--num-cpus): else each pod would offer the whole node.
"""
_WHY_FIXED = """
Each pod hosts the same replicas by itself: more pods are more replicas, and there is no autoscaler.
TERM drains: running calls finish, the rest is handed back, and the grace period is longer than that takes.
"""


def kubernetes(stack: Stack, scaled: Scaling | None = None) -> dict[str, str]:
    """Manifests by file name. Raises UsageError for a server that containers cannot reach, or scaling of no pool."""
    stack.refuse_local()
    scaled = scaled or Scaling()
    files: dict[str, str] = {}
    if stack.redis_url is None:
        files["valkey.yaml"] = write(valkey.manifests())
    files["worker.yaml"] = write(manifest for pool in stack.pools for manifest in _workers(stack, pool, scaled))
    for name, count in stack.daemons.items():
        files[f"{name}.yaml"] = write(_daemons(stack, name, count))
    if scalers := scaling.manifests(stack, scaled):
        files["scaling.yaml"] = write(scalers)
    first = next(iter(files))
    files[first] = note(_head(stack, scaled)) + files[first]
    return files


def _head(stack: Stack, scaled: Scaling) -> str:
    lines = ["Made by `qserve generate k8s`. Before the first `kubectl apply`, in the same namespace:", ""]
    lines.append("    (umask 077; qserve secret new > secret.key)")
    command = f"    kubectl create secret generic {SECRET} --from-file=secret-key=secret.key"
    if stack.hides_url:
        lines.append(f"    (umask 077; printf %s '{stack.endpoint}' > redis.url)    # with the real password")
        command += " --from-file=redis-url=redis.url"
    if stack.hides_url and scaled.kind == "keda":
        lines.append("    (umask 077; printf %s 'the real password' > redis.password)")
        command += " --from-file=redis-password=redis.password"
    return "\n".join([*lines, command, "\n"])


def _workers(stack: Stack, pool: Pool, scaled: Scaling) -> list[Manifest]:
    command = stack.worker(pool, HEARTBEAT_FILE, cpus=stack.cpus or _CPUS)
    process = container(stack, pool.name, command, _resources(stack)) | probes()
    count = None if scaled.scales(pool) else stack.workers
    # New pods first, so that replicas find a place before old ones leave; with GPUs there is rarely room for one more.
    rolling = Rolling(count, surge=0, unavailable=1) if stack.gpus else Rolling(count)
    body = workload(stack, pool.name, process, rolling)
    return [Manifest(body, _WHY_FIXED if stack.is_fixed else _WHY_WORKER), disruption_budget(pool.name)]


def _daemons(stack: Stack, name: str, count: int) -> list[Manifest]:
    """Of processes that host nothing: on different nodes, for a stand-by beside its leader would die with it."""
    process = container(stack, name, stack.daemon(name, HEARTBEAT_FILE), _SMALL) | probes()
    body = workload(stack, name, process, Rolling(count))
    apart = {"labelSelector": {"matchLabels": selector(name)}, "topologyKey": "kubernetes.io/hostname"}
    preferred = [{"weight": 100, "podAffinityTerm": apart}]
    pod: dict[str, Any] = body["spec"]["template"]["spec"]
    pod["affinity"] = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    return [Manifest(body, f"It {DAEMONS[name]}."), disruption_budget(name)]


def _resources(stack: Stack) -> dict[str, Any]:
    """No limit of CPU: it would throttle replicas while the node is idle. Memory that is not there kills."""
    memory = f"{stack.memory_mib or _MEMORY_MIB}Mi"
    gpus = {"nvidia.com/gpu": stack.gpus} if stack.gpus else {}
    return {
        "requests": {"cpu": f"{stack.cpus or _CPUS:g}", "memory": memory} | gpus,
        "limits": {"memory": memory} | gpus,
    }
