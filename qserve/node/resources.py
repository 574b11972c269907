"""What this host offers, and who it is."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from itertools import count

import psutil

from qserve.config import PROTOCOL_VERSION, VERSION, VISIBLE_DEVICES, visible_devices
from qserve.node.cgroup import Cgroup
from qserve.spec import NodeRecord

logger = logging.getLogger("qserve.worker")

# Without its persistence daemon a driver needs seconds to wake up eight devices; a broken one never answers.
_NVIDIA_SMI_TIMEOUT_S = 10.0


def offered(
    num_cpus: float | None = None,
    custom: dict[str, float] | None = None,
    *,
    num_gpus: int | None = None,
    memory: float | None = None,
) -> dict[str, float]:
    """What a worker offers here: CPUs, GPUs and memory (bytes) as they are found or as given, and custom resources."""
    return {
        "num_cpus": float(_cpus() if num_cpus is None else num_cpus),
        "num_gpus": float(len(visible_gpus()) if num_gpus is None else num_gpus),
        "memory": float(_memory_bytes() if memory is None else memory),
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


def rss_bytes(pid: int) -> int:
    """The memory that a process holds now, without the processes that it started; 0 when it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def gpu_ids(number: int) -> tuple[str, ...]:
    """The devices that a worker gives away when it offers so many: the visible ones first, then plain numbers."""
    if not number:
        return ()
    known = visible_gpus()
    if number > len(known):
        logger.warning("%d GPUs are offered, and %d were found here.", number, len(known))
    made_up = (text for text in map(str, count()) if text not in known)
    return (*known[:number], *(next(made_up) for _ in range(number - len(known))))


@cache
def visible_gpus() -> tuple[str, ...]:
    """Ids of this host's GPUs, as CUDA_VISIBLE_DEVICES takes them: of those in ours, or of all when it is not set."""
    ours = visible_devices()
    if ours is not None and not ours.strip():
        return ()
    rows = [(index.strip(), uuid.strip()) for index, comma, uuid in _cells(_nvidia_smi()) if comma]
    if ours is None or not rows:
        return tuple(index for index, _ in rows)
    return _allowed([text.strip() for text in ours.split(",")], rows)


def _cells(table: str) -> list[tuple[str, str, str]]:
    return [line.partition(",") for line in table.splitlines()]


def _allowed(given: Sequence[str], rows: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The given ids up to the first that names no device here, which is where CUDA stops, too.

    rows  index and uuid of each device; parts of a device (MIG) are not among them
    """
    known: list[str] = []
    for text in given:
        named = any(text == index or (len(text) > 4 and uuid.startswith(text)) for index, uuid in rows)
        if text in known or not (named or text.startswith("MIG-")):
            logger.warning(
                "%s of this worker names %r, which is no GPU here or stands there twice.", VISIBLE_DEVICES, text
            )
            break
        known.append(text)
    return tuple(known)


def _nvidia_smi() -> str:
    """A line "index, uuid" for each GPU; empty when there is none, or when none can be found out about."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    process = subprocess.Popen(
        [program, "--query-gpu=index,uuid", "--format=csv,noheader"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=_NVIDIA_SMI_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        _let_go(process)
        logger.warning("No GPUs are offered: nvidia-smi did not answer in %g s.", _NVIDIA_SMI_TIMEOUT_S)
        return ""
    if process.returncode != 0:
        logger.warning("No GPUs are offered: nvidia-smi says %s", output.strip() or f"exit code {process.returncode}")
        return ""
    return output


def _let_go(process: subprocess.Popen[str]) -> None:
    """End it, without waiting for an end that a hanging driver may never let come."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    assert process.stdout is not None
    process.stdout.close()


def _cpus() -> int:
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(here, Cgroup().cpu_limit() or here)


def _memory_bytes() -> int:
    here = psutil.virtual_memory().total
    return min(here, Cgroup().memory_limit() or here)
