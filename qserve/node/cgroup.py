"""The control group that this process is in: its limits, and how often the kernel killed in it for memory.

Linux, both generations of control groups. Where nothing can be read, nothing is known.
"""

from __future__ import annotations

import math
from pathlib import Path

# An older kernel writes "no limit" as the largest number of whole pages.
_NO_LIMIT_BYTES = 1 << 62


class Cgroup:
    """Reads the files of our own group, and of those that it lies in.

    root  of the file system, for tests
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._paths = _paths(root)

    def memory_limit(self) -> int | None:
        """The least limit in bytes; None when there is none."""
        limits = [*self._numbers("", "memory.max"), *self._numbers("memory", "memory.limit_in_bytes")]
        return min((limit for limit in limits if limit < _NO_LIMIT_BYTES), default=None)

    def cpu_limit(self) -> int | None:
        """How many CPUs may be kept busy, rounded up to whole ones; None when there is no limit."""
        shares = [
            int(quota) / int(period)
            for text in self._texts("", "cpu.max")
            for quota, period in [text.split()]
            if quota != "max"
        ]
        quotas, periods = self._numbers("cpu", "cpu.cfs_quota_us"), self._numbers("cpu", "cpu.cfs_period_us")
        shares += [quota / period for quota, period in zip(quotas, periods, strict=False) if quota > 0]
        return math.ceil(min(shares)) if shares else None

    def oom_kills(self) -> int | None:
        """How many processes of this group the kernel has killed for memory; None when it does not say."""
        texts = self._texts("", "memory.events") or self._texts("memory", "memory.oom_control")
        for text in texts[:1]:
            for line in text.splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
        return None

    def _numbers(self, controller: str, name: str) -> list[int]:
        return [int(text) for text in self._texts(controller, name) if text.strip() != "max"]

    def _texts(self, controller: str, name: str) -> list[str]:
        """A file of our group and of each group around it, as far as they are there; ours first."""
        path = self._paths.get(controller)
        if path is None:
            return []
        mount = self._root / "sys/fs/cgroup" / controller
        ours = mount / path.lstrip("/")
        # In a container the path may be the host's, while our group is mounted as the root.
        folders = [ours, *ours.parents] if ours.is_dir() else [mount]
        return [text for folder in folders if folder.is_relative_to(mount) and (text := _read(folder / name))]


def _paths(root: Path) -> dict[str, str]:
    """Our group's path by controller; by "" that of the unified hierarchy."""
    found: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
