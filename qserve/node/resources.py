"""What this host offers, and who it is."""

from __future__ import annotations

import os
import platform
import secrets
import socket

import psutil

from qserve.config import PROTOCOL_VERSION, VERSION
from qserve.spec import NodeRecord


def offered(num_cpus: float | None = None, custom: dict[str, float] | None = None) -> dict[str, float]:
    """CPUs (the host's, or `num_cpus`), memory in bytes, and custom resources."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "num_cpus": float(cpus if num_cpus is None else num_cpus),
        "memory": float(psutil.virtual_memory().total),
        **(custom or {}),
    }


def describe(
    *, resources: dict[str, float], labels: dict[str, str] | None = None, deployments: tuple[str, ...] = ()
) -> NodeRecord:
    """The record of a worker that starts now in this process."""
    host = socket.gethostname()
    return NodeRecord(
        node_id=f"{host.replace(':', '-')}-{secrets.token_hex(3)}",
        host=host,
        pid=os.getpid(),
        python=platform.python_version(),
        qserve=VERSION,
        protocol=PROTOCOL_VERSION,
        resources=resources,
        labels=labels or {},
        deployments=deployments,
    )
