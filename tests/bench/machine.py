"""What a run was measured on."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from tests.bench.server import Probe, Server


@dataclass(frozen=True)
class Machine:
    """Processor, system, Python and server."""

    cpu: str
    cpus: int
    system: str
    python: str
    server: str


def describe(server: Server) -> Machine:
    """This machine, and the server that runs on it."""
    with Probe(server.port) as probe:
        version = probe.version()
    return Machine(
        cpu=_processor(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        server=version,
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
