"""Why a replica ended: told apart as far as the kernel tells."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from qserve.node.cgroup import Cgroup
from qserve.node.exits import MemoryKills, explain, versions_differ
from qserve.spec import ExitCause


class Kernel:
    """A file system in which this process is in a control group of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/self/cgroup", "0::/pod/worker\n")
        self.killed(0)

    def write(self, path: str, text: str) -> None:
        """One file."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def killed(self, times: int) -> None:
        """It has killed so often for memory."""
        self.write("sys/fs/cgroup/pod/worker/memory.events", f"low 0\noom 3\noom_kill {times}\n")

    @property
    def cgroup(self) -> Cgroup:
        return Cgroup(self.root)


@pytest.fixture
def kernel(tmp_path) -> Kernel:
    """It has killed nothing yet."""
    return Kernel(tmp_path)


@pytest.mark.parametrize("code", [-signal.SIGKILL, 137])
def test_a_kill_for_memory_is_told_from_one_by_hand(kernel, code):
    """One asks for another host or a smaller batch, the other for whoever typed it."""
    kills = MemoryKills(kernel.cgroup)
    assert explain(code, kills)[0] is ExitCause.SIGNAL
    assert "by hand" in explain(code, kills)[1]

    kernel.killed(1)
    cause, words = explain(code, kills)
    assert cause is ExitCause.OUT_OF_MEMORY
    assert "out of memory" in words


def test_each_kill_for_memory_explains_one_end(kernel):
    """Else everything that is killed by hand after it would be blamed on memory."""
    kernel.killed(5)
    kills = MemoryKills(kernel.cgroup)
    kernel.killed(7)
    assert [explain(-9, kills)[0] for _ in range(3)] == [
        ExitCause.OUT_OF_MEMORY,
        ExitCause.OUT_OF_MEMORY,
        ExitCause.SIGNAL,
    ]


def test_where_the_kernel_says_nothing_both_are_possible(tmp_path):
    """A message that is surer than its writer sends people the wrong way."""
    cause, words = explain(-signal.SIGKILL, MemoryKills(Cgroup(tmp_path)))
    assert cause is ExitCause.SIGNAL
    assert words == "SIGKILL: by hand, or by the kernel because the host or its control group was out of memory"


@pytest.mark.parametrize(
    ("code", "cause", "words"),
    [
        (3, ExitCause.EXIT_CODE, "exit code 3"),
        (0, ExitCause.EXIT_CODE, "exit code 0"),
        (-signal.SIGSEGV, ExitCause.SIGNAL, "SIGSEGV"),
        (-40, ExitCause.SIGNAL, "signal 40"),
    ],
)
def test_exit_codes_and_signals_have_their_names(kernel, code, cause, words):
    """-11 is looked up, SIGSEGV is understood."""
    assert explain(code, MemoryKills(kernel.cgroup)) == (cause, words)


def test_an_older_kernel_counts_elsewhere(tmp_path):
    """The first generation of control groups is still there on older hosts."""
    kernel = Kernel(tmp_path)
    kernel.write("proc/self/cgroup", "4:memory:/job\n1:cpu,cpuacct:/\n0::/\n")
    kernel.write("sys/fs/cgroup/memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    kernel.write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1000\n")
    kernel.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    kernel.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    kernel.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert (kernel.cgroup.oom_kills(), kernel.cgroup.memory_limit(), kernel.cgroup.cpu_limit()) == (4, 1000, None)


def test_limits_of_the_groups_around_ours_hold_too(kernel):
    """A pod's limit stands one level above its container's."""
    kernel.write("sys/fs/cgroup/pod/worker/memory.max", "max\n")
    kernel.write("sys/fs/cgroup/pod/memory.max", "4000\n")
    kernel.write("sys/fs/cgroup/memory.max", "9000\n")
    kernel.write("sys/fs/cgroup/pod/cpu.max", "150000 100000\n")
    kernel.write("sys/fs/cgroup/pod/worker/cpu.max", "max 100000\n")
    assert (kernel.cgroup.memory_limit(), kernel.cgroup.cpu_limit()) == (4000, 2)


def test_in_a_container_our_group_is_the_root(tmp_path):
    """There the path may be the host's, which nobody can open from within."""
    kernel = Kernel(tmp_path)
    kernel.write("proc/self/cgroup", "0::/docker/0a1b2c\n")
    kernel.write("sys/fs/cgroup/memory.max", "5000\n")
    kernel.write("sys/fs/cgroup/memory.events", "oom_kill 2\n")
    assert (kernel.cgroup.memory_limit(), kernel.cgroup.oom_kills()) == (5000, 2)


def test_another_minor_version_of_python_is_named_with_a_failed_start():
    """Bytecode travels by value: another interpreter fails on it in ways that name no version."""
    assert "Python 3.9.1" in versions_differ("3.9.1")


def test_another_patch_release_of_python_is_no_difference():
    """Bytecode is the same for all of them."""
    import sys

    assert versions_differ(f"{sys.version_info.major}.{sys.version_info.minor}.99") == ""
