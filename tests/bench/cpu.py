"""CPU time of other processes.

To the nanosecond on Linux: a scheduler's tick of 10 ms would hide all that an idle process does.
"""

import sys
import time
from collections.abc import Mapping

import psutil

_CPUCLOCK_SCHED = 2


def cpu_seconds(pid: int) -> float | None:
    """CPU seconds that this process has used, all threads and also those that ended; None when it is gone."""
    try:
        if sys.platform == "linux":
            # What clock_getcpuclockid(3) computes; Python has it for threads only.
            return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    except (OSError, psutil.Error):
        return None


def descendants() -> dict[int, str]:
    """Every process below this one, with a short name."""
    names = {}
    for process in psutil.Process().children(recursive=True):
        try:
            names[process.pid] = _short(process.cmdline()) or process.name()
        except psutil.Error:
            continue
    return names


def snapshot(pids: Mapping[int, str]) -> dict[int, float]:
    """CPU seconds of every one of these processes that still lives."""
    return {pid: used for pid in pids if (used := cpu_seconds(pid)) is not None}


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> dict[int, float]:
    """CPU seconds between two snapshots, per process; one that is new started at 0."""
    return {pid: used - before.get(pid, 0.0) for pid, used in after.items()}


def _short(command: list[str]) -> str:
    words = [word.rsplit("/", 1)[-1] for word in command if not word.startswith("-")]
    return " ".join(words[:3])[:60]
