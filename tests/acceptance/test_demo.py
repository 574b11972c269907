"""`scripts/demo_digits.py` as a newcomer runs it: a process of its own that starts a whole cluster, and ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.cluster import ROOT, eventually

DEMO = [sys.executable, str(ROOT / "scripts/demo_digits.py")]
TEST_IMAGES = 899


@dataclass(frozen=True)
class Run:
    """One finished run of the demo, and what was there right after it."""

    code: int
    output: str
    errors: str
    processes: list[str]
    files: list[str]

    def figure(self, name: str) -> str:
        """What the table says in the line of that name."""
        found = re.search(rf"^ *{re.escape(name)} +(.+?) *$", self.output, re.MULTILINE)
        assert found, f"no line {name!r} in:\n{self.output}"
        return found[1]

    def calls_by_replica(self) -> list[int]:
        """How many calls each replica took."""
        return [int(number) for number in re.findall(r"calls of Classify-\w+ +(\d+)", self.output)]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """The demo, run once, without a terminal."""
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        done = subprocess.run(DEMO, env=environment(folder), capture_output=True, text=True, timeout=50, check=False)
        left = [path.name for path in Path(folder).iterdir()]
        yield Run(done.returncode, done.stdout, done.stderr, living(folder), left)


@pytest.fixture
def folder() -> Iterator[str]:
    """A short path: a socket goes into it, and a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="demo-") as made:
        yield made


def environment(folder: str) -> dict[str, str]:
    """A temporary folder that names every process which the demo starts, and a cluster that it must not touch."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("QSERVE_")}
    return {**env, "TMPDIR": folder, "QSERVE_REDIS_URL": "redis://127.0.0.1:1/0"}


def living(folder: str) -> list[str]:
    """Command lines of all processes that have this temporary folder: whatever started them, and in any session."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == folder and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_the_demo_recognizes_handwriting(run):
    """It is the first thing that a newcomer sees: it must work, and show a model that works."""
    assert run.code == 0, run.errors
    assert float(run.figure("accuracy").rstrip("%")) > 90


def test_the_demo_shows_its_speed(run):
    """Rate and latency stand in the table, measured on the machine that the reader knows."""
    assert float(run.figure("calls/s").split(",")[0]) > 0
    for line in (f"latency, {TEST_IMAGES} calls at once", "latency, one call at a time"):
        p50, p99 = (float(number) for number in re.findall(r"p\d\d ([\d.]+) ms", run.figure(line)))
        assert 0 < p50 <= p99


def test_both_replicas_share_the_work(run):
    """Two replicas that pull from one queue are what the demo is about: neither stays idle, and no call is lost."""
    calls = run.calls_by_replica()
    assert len(calls) == 2
    assert min(calls) > 0
    assert sum(calls) == TEST_IMAGES


def test_without_a_terminal_the_demo_prints_plain_lines(run):
    """In a CI log, control sequences and a bar drawn a hundred times are noise; so are warnings."""
    assert "\x1b" not in run.output
    assert len(run.output.splitlines()) < 12
    assert run.errors == ""
    assert f"{TEST_IMAGES} images classified" in run.output.splitlines()[-1]


def test_the_demo_leaves_nothing_behind(run):
    """A library that litters a laptop with servers, sockets and folders is not installed twice."""
    assert run.processes == []
    assert run.files == []


@pytest.mark.parametrize("moment", ["starting", "serving"])
def test_ctrl_c_ends_the_demo_cleanly(folder, moment):
    """Whoever has seen enough presses Ctrl-C: the answer is one line, not a traceback, and all is cleared up."""
    with subprocess.Popen(
        DEMO, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout
        assert demo.stderr
        if moment == "starting":
            eventually(lambda: len(living(folder)) > 2, what="the demo has started processes")
        else:
            assert demo.stdout.readline().startswith("Serving")
        demo.send_signal(signal.SIGINT)
        output, errors = demo.stdout.read(), demo.stderr.read()

    assert demo.returncode == 128 + signal.SIGINT, errors
    assert "Interrupted" in output
    assert errors == ""
    eventually(lambda: not living(folder) and not list(Path(folder).iterdir()), what="nothing is left")
