"""Commands as a user types them: in this process where that is the same, as processes for signals and folders."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from click.testing import CliRunner, Result

from qserve.cli.root import qserve
from qserve.client import portal
from qserve.config import Settings
from tests.support.cluster import Cluster, cluster_in, eventually, namespace_on

QSERVE = str(Path(sysconfig.get_path("scripts")) / "qserve")
Invoke = Callable[..., Result]
APPLICATION = """
import time
import qserve as serve

@serve.deployment(num_replicas=2)
class Greeter:
    def say_hi(self, name="you"):
        return f"hi {name}"

@serve.deployment
class Caller:
    def __init__(self, greeter):
        self._greeter = greeter
    async def __call__(self, name):
        return await self._greeter.say_hi.remote(name)

@serve.deployment
class Broken:
    def __init__(self):
        raise RuntimeError("there is no model file")

@serve.deployment
class Sleeper:
    def __call__(self):
        print("it sleeps", flush=True)
        time.sleep(600)

app = Caller.bind(Greeter.bind())
sleeper = Sleeper.bind()
broken = Broken.bind()

def build(args):
    return Caller.options(name=args["title"]).bind(Greeter.options(num_replicas=1).bind())
"""


class Seen(NamedTuple):
    """What stood on a terminal, and the exit code."""

    text: str
    code: int


class Command:
    """One `qserve` process, its output in files. It ends with the test."""

    def __init__(self, folder: Path, env: dict[str, str], arguments: tuple[str, ...]) -> None:
        name = secrets.token_hex(4)
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [QSERVE, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=env,
                cwd=folder,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        """What stands on stdout by now."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What stands on stderr by now."""
        return self._err.read_text()

    def says(self, text: str) -> None:
        """Wait until `text` stands on stdout."""
        eventually(lambda: text in self.out or self.process.poll() is not None, within_s=30, what=text)
        assert text in self.out, f"it ended with {self.process.poll()}:\n{self.out}\n{self.err}"

    def signal(self, number: signal.Signals) -> None:
        """As the terminal does: to every process of its group."""
        os.killpg(self.process.pid, number)

    def ended(self) -> int:
        """Wait for its end. Returns the exit code."""
        return self.process.wait(40)

    def tree(self) -> list[psutil.Process]:
        """It and all processes below it."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def close(self) -> None:
        """End it, by force if need be."""
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


Start = Callable[..., Command]


def at_a_terminal(arguments: tuple[str, ...], env: dict[str, str], folder: Path, *, until: str, keys: str) -> Seen:
    """Run a command on a terminal, press `keys` when it shows `until`, and wait for its end."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [QSERVE, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env | {"TERM": "xterm", "COLUMNS": "120"},
        cwd=folder,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 (only then does Ctrl-C become a signal)
    )
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # the end of a terminal is an error
        while chunk := os.read(ours, 4096):
            seen += chunk
            if keys and until.encode() in seen:
                os.write(ours, keys.encode())
                keys = ""
    os.close(ours)
    return Seen(seen.decode(), process.wait(20))


@pytest.fixture(scope="module")
def settings(broker_url: str) -> Iterator[Settings]:
    """Signed settings in a namespace of the file's own, which this process uses until the file ends."""
    with namespace_on(broker_url) as chosen:
        yield chosen


@pytest.fixture(scope="module")
def cluster(settings: Settings) -> Iterator[Cluster]:
    """An autoscaler and a worker as processes, for all tests of the file."""
    with cluster_in(settings) as running:
        yield running


@pytest.fixture
def invoke(settings: Settings) -> Iterator[Invoke]:
    """`invoke("status", "--json")` runs a command in this process, with the file's cluster in its environment."""
    logger = logging.getLogger("qserve")
    before = logger.handlers[:], logger.level, logger.propagate

    def run(*arguments: str, env: dict[str, str | None] | None = None) -> Result:
        return CliRunner(env={**settings.child_env(), **(env or {})}).invoke(qserve, arguments)

    yield run
    portal.use(settings)
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with an application in it and a short path, which sockets need; commands start here."""
    path = Path(tempfile.mkdtemp(prefix="qs-"))
    (path / "hello.py").write_text(APPLICATION)
    (path / "tmp").mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def clean_env(folder: Path) -> dict[str, str]:
    """The environment of a machine that knows of no cluster."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("QSERVE_")}
    return env | {"TMPDIR": str(folder / "tmp")}


@pytest.fixture(scope="module")
def start(folder: Path, clean_env: dict[str, str]) -> Iterator[Start]:
    """`start("run", "hello:app")` is a command on a machine without a cluster; `settings=` names one."""
    commands: list[Command] = []

    def command(*arguments: str, settings: Settings | None = None, **env: str) -> Command:
        chosen = clean_env if settings is None else clean_env | settings.child_env()
        commands.append(Command(folder, chosen | env, arguments))
        return commands[-1]

    yield command
    for started in commands:
        started.close()
