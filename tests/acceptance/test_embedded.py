"""`serve.run(app)` in a script with no server installed: it starts what it needs, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.cluster import ROOT, eventually

APP = """
import os, sys, time
import qserve as serve

@serve.deployment
class Hello:
    def __call__(self, name):
        return f"hello {name}"
    def pid(self):
        return os.getpid()

handle = serve.run(Hello.bind())
print(handle.remote("world").result(timeout_s=10), flush=True)
"""
WAIT = "time.sleep(3600)"


class Script:
    """One script of a user who has set nothing, and the traces of it on this host: its folder and its processes."""

    def __init__(self, folder: Path, code: str) -> None:
        self.temp = folder / "tmp"
        self.temp.mkdir(parents=True)
        path = folder / "script.py"
        path.write_text(textwrap.dedent(code))
        env = {name: value for name, value in os.environ.items() if not name.startswith("QSERVE_")}
        env |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temp)}
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            env=env,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._seen: dict[int, psutil.Process] = {}

    def first_line(self) -> str:
        """What it prints first; its whole family is known from then on."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.look_around()
        return line.rstrip("\n")

    def look_around(self) -> None:
        """Remember the processes there are now."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self._seen |= {child.pid: child for child in family}

    def family(self) -> list[psutil.Process]:
        """The processes that it has started, and that still run."""
        return [child for child in self._seen.values() if is_alive(child)]

    def end(self, how: signal.Signals) -> None:
        """Send a signal to the script alone."""
        self.process.send_signal(how)

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, the rest of its output, its errors."""
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err

    def leaves_nothing(self, within_s: float) -> None:
        """No process and no folder of it is left."""
        eventually(lambda: not self.family(), within_s=within_s, what=f"processes are left: {self.family()}")
        eventually(lambda: not list(self.temp.iterdir()), within_s=within_s, what="a folder is left")


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that only waits for its parent to notice its end does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def start(tmp_path) -> Iterator[object]:
    """Starts scripts; ends those that a failed test leaves."""
    scripts: list[Script] = []

    def start_script(code: str) -> Script:
        scripts.append(Script(tmp_path / str(len(scripts)), code))
        return scripts[-1]

    yield start_script
    for script in scripts:
        if script.process.poll() is None:
            script.look_around()
            script.process.kill()
        with script.process:  # which closes its pipes and waits
            for process in script.family():
                process.kill()


def test_a_script_has_its_first_result_within_seconds(start, record_property):
    """Under two seconds on a free machine: who tries it must not wait. The limit here bears a busy host."""
    script = start(APP + WAIT)

    assert script.first_line() == "hello world"
    took_s = time.monotonic() - script.started_at
    record_property("first_result_s", round(took_s, 2))
    assert took_s < 6
    script.end(signal.SIGTERM)


def test_a_script_that_ends_leaves_nothing(start):
    """The last line of the script is the end of everything that it started, and its output is its own."""
    script = start(APP)

    assert script.first_line() == "hello world"
    assert script.finish() == (0, "", "")
    script.leaves_nothing(within_s=1)


def test_shutdown_in_the_script_leaves_nothing_and_it_may_run_again(start):
    """A notebook starts and stops a cluster as often as it likes."""
    script = start(
        APP
        + """
serve.shutdown()
print(serve.status().applications, flush=True)
handle = serve.run(Hello.bind())
print(handle.remote("again").result(timeout_s=10), flush=True)
"""
    )

    assert script.first_line() == "hello world"
    assert script.finish() == (0, "{}\nhello again\n", "")
    script.leaves_nothing(within_s=1)


def test_a_script_that_raises_leaves_nothing(start):
    """An exception is an end as well; the traceback is the user's alone."""
    script = start(APP + "raise ZeroDivisionError('mine')")

    assert script.first_line() == "hello world"
    code, out, err = script.finish()
    assert (code, out) == (1, "")
    assert err.endswith("ZeroDivisionError: mine\n")
    assert "qserve" not in err
    script.leaves_nothing(within_s=1)


def test_ctrl_c_leaves_nothing(start):
    """In a terminal, Ctrl-C reaches the script; what it started is not in that terminal's group and drains in order."""
    script = start(APP + WAIT)
    script.first_line()

    script.end(signal.SIGINT)
    code, _, err = script.finish()
    assert code == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
    script.leaves_nothing(within_s=1)


def test_ctrl_c_ends_a_blocking_run(start):
    """`serve.run(app, blocking=True)` is a server in the foreground."""
    script = start(APP + "serve.run(Hello.bind(), blocking=True)")
    script.first_line()

    script.end(signal.SIGINT)
    code, _, err = script.finish()
    assert code == -signal.SIGINT
    assert "KeyboardInterrupt" in err
    script.leaves_nothing(within_s=1)


def test_a_script_that_is_killed_leaves_nothing(start):
    """SIGKILL runs no handler: broker, worker, autoscaler and replicas notice by themselves within seconds."""
    script = start(APP + WAIT)
    script.first_line()
    assert len(script.family()) >= 5, "guard, broker, autoscaler, worker, replica"

    script.end(signal.SIGKILL)
    script.process.wait()
    script.leaves_nothing(within_s=8)


def test_a_script_that_is_killed_while_it_starts_leaves_nothing(start):
    """The worst moment: some of it runs, some does not yet."""
    script = start(APP + WAIT)
    eventually(lambda: len(psutil.Process(script.process.pid).children()) >= 2)
    script.look_around()

    script.end(signal.SIGKILL)
    script.process.wait()
    script.leaves_nothing(within_s=10)


def test_a_script_that_is_killed_with_a_call_running_leaves_nothing(start):
    """A call that never ends must not keep a dead script's cluster alive."""
    script = start(
        """
        import time
        import qserve as serve

        @serve.deployment
        class Endless:
            def __call__(self):
                time.sleep(3600)

        handle = serve.run(Endless.bind())
        response = handle.remote()
        while response.status() != "RUNNING":
            pass
        print("running", flush=True)
        time.sleep(3600)
        """
    )
    assert script.first_line() == "running"

    script.end(signal.SIGKILL)
    script.process.wait()
    script.leaves_nothing(within_s=8)


def test_two_scripts_at_once_know_nothing_of_each_other(start):
    """Two terminals, two clusters: the same application name twice is no conflict."""
    first, second = start(APP + WAIT), start(APP + WAIT)
    assert first.first_line() == second.first_line() == "hello world"
    assert not {process.pid for process in first.family()} & {process.pid for process in second.family()}

    first.end(signal.SIGTERM)
    first.process.wait()
    first.leaves_nothing(within_s=8)
    assert len(second.family()) >= 5
    second.end(signal.SIGINT)
    second.finish()
    second.leaves_nothing(within_s=1)


def test_what_replicas_print_is_shown_with_their_name(start):
    """`print` in a replica is the first tool of whoever looks for a mistake."""
    script = start(
        """
        import qserve as serve

        @serve.deployment
        class Loud:
            def __call__(self):
                print("I am here")

        serve.run(Loud.bind()).remote().result(timeout_s=10)
        """
    )

    code, out, err = script.finish()
    assert (code, err) == (0, "")
    assert re.fullmatch(r"\(Loud#\w+ pid=\d+\) I am here\n", out)


def test_a_forked_child_does_not_end_its_parents_cluster(start):
    """A web server forks its workers; one of them leaves."""
    script = start(
        APP
        + """
if not os.fork():
    print(handle.remote("child").result(timeout_s=10), flush=True)
    sys.exit(0)
os.wait()
print(handle.remote("parent").result(timeout_s=10), flush=True)
"""
    )

    assert script.first_line() == "hello world"
    assert script.finish() == (0, "hello child\nhello parent\n", "")
    script.leaves_nothing(within_s=1)
