"""What commands print: tables and live lines on a terminal, plain lines into a file or a pipe."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from qserve.client import portal
from qserve.config import Settings
from qserve.doctor import Check, Verdict
from qserve.spec import ApplicationStatusInfo, DeploymentStatus, DeploymentStatusInfo, ReplicaState, ServeStatus
from qserve.store.connection import parse_url
from qserve.store.embedded import EmbeddedBroker

# In a pipe a row is a line, however long.
_PIPE_WIDTH = 10_000
_TRACEBACK = "Traceback (most recent call last)"
_GOOD = frozenset({"RUNNING", "HEALTHY", "ok"})
_BAD = frozenset({"DEPLOY_FAILED", "UNHEALTHY", "fail"})


def line(text: str) -> None:
    """A line on stdout. A reader that has gone is no reason to stop: there may be something to take down."""
    with suppress(OSError):
        click.echo(text)


def running(deployment_id: str, env_file: Path | None) -> None:
    """What runs now, where, and how to reach it."""
    settings = portal.settings()
    line(f"Application {deployment_id.partition('.')[0]!r} is running; its handle is {deployment_id}.")
    if env_file is None:
        line(f"It runs on the workers at {parse_url(settings.redis_url or '')}, namespace {settings.namespace!r}.")
    else:
        line("It runs on this host, in a cluster of its own. To reach it from another terminal:")
        line(f"  source {shlex.quote(str(env_file))}")
        line(f"  qserve call {deployment_id} '[...]'")
    line("Ctrl-C takes it down.")


def broker(settings: Settings, served: EmbeddedBroker) -> None:
    """Where a broker listens: the lines for a shell on stdout, what they mean on stderr."""
    click.echo(f"The broker runs in {served.folder}; its data stays there. Ctrl-C stops it. To use it:", err=True)
    reached = Settings(redis_url=served.url, namespace=settings.namespace)
    line(reached.shell_exports(with_secrets=False).rstrip())


def status(found: ServeStatus, namespace: str) -> None:
    """Applications, deployments and workers; then the whole message of each deployment that has a long one."""
    if not found.applications:
        line(f"No application is deployed in namespace {namespace!r}.")
    else:
        _print(_table("APPLICATION STATUS", ((n, a.status) for n, a in found.applications.items())))
        line("")
        _print(_deployments(found))
    line("")
    if not found.nodes:
        line("No worker has joined: start `qserve worker`.")
    else:
        _print(_workers(found))
    for app, info in found.applications.items():
        for name, deployment in info.deployments.items():
            if deployment.message != brief(deployment.message):
                line(f"\n{app}.{name}: {deployment.message.rstrip()}")


def checks(found: Sequence[Check]) -> None:
    """A line for each check, and below it the mend."""
    table = _table("VERDICT CHECK FINDING", ())
    for check in found:
        finding = check.finding if check.verdict is Verdict.OK else f"{check.finding} {check.mend}".rstrip()
        table.add_row(_coloured(check.verdict), check.name, finding)
    _print(table)


def brief(message: str) -> str:
    """One line of a message that may have many: the exception of a traceback, else the first."""
    lines = [text for text in message.splitlines() if text.strip()]
    if not lines:
        return ""
    return lines[-1].strip() if _TRACEBACK in message else lines[0]


class Progress:
    """A live line for each deployment of an application, while it is deployed. Call it with every new status."""

    def __init__(self, app: str, *, is_embedded: bool) -> None:
        self._app = app
        self._is_embedded = is_embedded
        self._shown: dict[str, str] = {}
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            self._live = Live(console=Console(), refresh_per_second=8, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, info: ApplicationStatusInfo) -> None:
        with self._lock:
            if self._live is not None:
                lines = (_spinning(name, told, self._text(told)) for name, told in info.deployments.items())
                self._live.update(Group(*lines))
                return
            for name, told in info.deployments.items():
                text = self._text(told)
                if self._shown.get(name) != text:
                    self._shown[name] = text
                    line(f"{self._app}.{name}: {text}")

    def _text(self, deployment: DeploymentStatusInfo) -> str:
        if self._is_embedded and not deployment.replica_states and not deployment.failures:
            return "starting"  # its own worker is about to join: nobody needs to start one
        return progress_of(deployment)


def progress_of(deployment: DeploymentStatusInfo) -> str:
    """How far a deployment has come, in words."""
    count = deployment.replica_states.get(ReplicaState.RUNNING, 0)
    if deployment.status is DeploymentStatus.HEALTHY:
        return f"running, {count} replica{'' if count == 1 else 's'}"
    return f"{deployment.status.lower().replace('_', ' ')}: {brief(deployment.message) or 'starting'}"


def _spinning(name: str, deployment: DeploymentStatusInfo, told: str) -> RenderableType:
    text = Text(f"{name}  {told}", no_wrap=True, overflow="ellipsis")
    if deployment.status is DeploymentStatus.HEALTHY:
        return Text("✓ ", style="green") + text
    if deployment.status in _BAD:
        return Text("✗ ", style="red") + text
    return Spinner("dots", text)


def _deployments(found: ServeStatus) -> Table:
    return _table(
        "DEPLOYMENT STATUS REPLICAS WAITING RUNNING MESSAGE",
        (
            (
                f"{app}.{name}",
                told.status,
                ", ".join(f"{count} {state}" for state, count in sorted(told.replica_states.items())) or "none",
                str(told.waiting),
                str(told.running),
                brief(told.message),
            )
            for app, info in found.applications.items()
            for name, told in info.deployments.items()
        ),
    )


def _workers(found: ServeStatus) -> Table:
    return _table(
        "WORKER PID OFFERS LABELS TAKES PYTHON QSERVE",
        (
            (
                f"{node.node_id}{' (draining)' if node.draining else ''}",
                str(node.pid),
                ", ".join(_amount(name, size) for name, size in node.resources.items()),
                ", ".join(f"{key}={value}" for key, value in node.labels.items()) or "-",
                ", ".join(node.deployments) or "all",
                node.python,
                node.qserve,
            )
            for node in found.nodes
        ),
    )


def _amount(name: str, size: float) -> str:
    return f"{name} {size / 2**30:.1f} GiB" if name == "memory" else f"{name} {size:g}"


def _table(columns: str, rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns.split():
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_coloured(cell) for cell in row))
    return table


def _coloured(cell: str) -> Text:
    return Text(cell, style="green" if cell in _GOOD else "red" if cell in _BAD else "")


def _print(table: Table) -> None:
    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=_PIPE_WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(table)
    line("\n".join(text.rstrip() for text in captured.get().splitlines()))
