"""What commands print: tables and live lines on a terminal, plain lines into a file or a pipe."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
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
from qserve.deploying.desired import Plan
from qserve.deploying.preview import Step, Verb, differences
from qserve.doctor import Check, Verdict
from qserve.scheduling import Cron
from qserve.spec import (
    ApplicationStatusInfo,
    AppSpec,
    Decision,
    DeploymentStatus,
    DeploymentStatusInfo,
    ReplicaRecord,
    ReplicaState,
    ServeStatus,
)
from qserve.store.connection import parse_url
from qserve.store.embedded import EmbeddedBroker

# In a pipe a row is a line, however long.
_PIPE_WIDTH = 10_000
_TRACEBACK = "Traceback (most recent call last)"
_GOOD = frozenset({"RUNNING", "HEALTHY", "ok", "create"})
_BAD = frozenset({"DEPLOY_FAILED", "UNHEALTHY", "FAILED", "DIED", "fail", "delete"})


def line(text: str) -> None:
    """A line on stdout. A reader that has gone is no reason to stop: there may be something to take down."""
    with suppress(OSError):
        click.echo(text)


def running(handles: Sequence[str], env_file: Path | None) -> None:
    """What runs now, where, and how to reach it.

    handles  APP.DEPLOYMENT of each application's outermost deployment
    """
    settings = portal.settings()
    for handle in handles:
        line(f"Application {handle.partition('.')[0]!r} is running; its handle is {handle}.")
    if env_file is None:
        line(f"It runs on the workers at {parse_url(settings.redis_url or '')}, namespace {settings.namespace!r}.")
    else:
        line("It runs on this host, in a cluster of its own. To reach it from another terminal:")
        line(f"  source {shlex.quote(str(env_file))}")
        line(f"  qserve call {handles[0] if handles else 'APP.DEPLOYMENT'} '[...]'")
    line("Ctrl-C takes it down.")


def broker(settings: Settings, served: EmbeddedBroker) -> None:
    """Where a broker listens: the lines for a shell on stdout, what they mean on stderr."""
    click.echo(f"The broker runs in {served.folder}; its data stays there. Ctrl-C stops it. To use it:", err=True)
    reached = Settings(redis_url=served.url, namespace=settings.namespace)
    line(reached.shell_exports(with_secrets=False).rstrip())


def status(found: ServeStatus, namespace: str, paused: Collection[str] = ()) -> None:
    """Applications, deployments and workers; then the whole message of each deployment that has a long one.

    paused  APP.DEPLOYMENT of those that take no calls
    """
    if not found.applications:
        line(f"No application is deployed in namespace {namespace!r}.")
    else:
        _print(_applications(found))
        line("")
        _print(_deployments(found, with_queues=True, paused=paused))
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


def plan(steps: Sequence[Step]) -> None:
    """What a deploy changes, a line for each deployment."""
    if not any(step.verb is not Verb.KEEP for step in steps):
        line("Nothing changes.")
        return
    _print(_table("DEPLOYMENT CHANGE WHY", ((step.path, step.verb, step.why) for step in steps)))


def changes(done: Plan) -> None:
    """What an operation changes, without the deployments that stay as they are."""
    plan([step for step in done.steps if step.verb is not Verb.KEEP])


def versions(found: Sequence[AppSpec]) -> None:
    """An application's versions, and what going back to each would change."""
    rows = []
    for back, version in enumerate(found):
        differs = differences(found[0], version) if back else "the present one"
        rows.append((str(back), _time(version.deployed_at_s), version.source or "Python", differs))
    _print(_table("BACK DEPLOYED FROM DIFFERS", rows))


def crons(found: Sequence[Cron]) -> None:
    """Recurring calls, and when they run next by this host's clock."""
    rows = (
        (
            each.name,
            f"{each.app_name}.{each.deployment_name}.{each.method_name}",
            each.expression,
            each.timezone,
            "?" if each.next_s is None else _time(each.next_s),
        )
        for each in found
    )
    _print(_table("NAME CALLS WHEN TIMEZONE NEXT", rows))


def replicas(found: Sequence[ReplicaRecord], now: float) -> None:
    """A row for each replica; then the whole message of each that has a long one."""
    rows = (
        (
            replica.replica_id,
            f"{replica.app}.{replica.deployment}",
            replica.state,
            replica.node_id,
            str(replica.pid or "-"),
            ",".join(replica.gpus) or "-",
            replica.version,
            _age(now - replica.started_at_s) if replica.started_at_s else "-",
            brief(replica.message or replica.retiring),
        )
        for replica in found
    )
    _print(_table("REPLICA DEPLOYMENT STATE WORKER PID GPUS VERSION AGE MESSAGE", rows))


def decisions(found: Mapping[str, Sequence[Decision]]) -> None:
    """What the autoscaler decided for each deployment, newest first."""
    rows = (
        (_time(decision.at_s), path, str(decision.before), str(decision.after), decision.reason)
        for path, made in found.items()
        for decision in made
    )
    _print(_table("TIME DEPLOYMENT FROM TO REASON", rows))


class _Shown:
    """Lines that stay where they are on a terminal; elsewhere a line each time that one changes.

    is_moving  drawn again by itself, eight times a second; else only when something has changed
    """

    def __init__(self, *, is_moving: bool) -> None:
        self._is_moving = is_moving
        self._before: dict[str, str] = {}
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            self._live = Live(
                console=Console(),
                auto_refresh=self._is_moving,
                refresh_per_second=8,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _say(self, lines: Mapping[str, str], *, is_all: bool) -> None:
        """Say the lines that have changed, and, when these are all, which have gone."""
        for name, text in lines.items():
            if self._before.get(name) != text:
                self._before[name] = text
                line(f"{name}: {text}")
        for name in self._before.keys() - lines.keys() if is_all else ():
            del self._before[name]
            line(f"{name}: gone")


class Progress(_Shown):
    """A live line for each deployment, while applications are deployed. Call it with every new status of one."""

    def __init__(self, *, is_embedded: bool) -> None:
        super().__init__(is_moving=True)
        self._is_embedded = is_embedded
        self._infos: dict[str, ApplicationStatusInfo] = {}

    def __call__(self, app: str, info: ApplicationStatusInfo) -> None:
        with self._lock:
            self._infos[app] = info
            if self._live is None:
                self._say({f"{app}.{name}": self._text(told) for name, told in info.deployments.items()}, is_all=False)
                return
            lines = (
                _spinning(f"{app}.{name}", told, self._text(told))
                for app, info in self._infos.items()
                for name, told in info.deployments.items()
            )
            self._live.update(Group(*lines))

    def _text(self, deployment: DeploymentStatusInfo) -> str:
        if self._is_embedded and not deployment.replica_states and not deployment.failures:
            return "starting"  # its own worker is about to join: nobody needs to start one
        return progress_of(deployment)


class Watch(_Shown):
    """The status, as it changes. Call it with every new one."""

    def __init__(self, namespace: str) -> None:
        super().__init__(is_moving=False)
        self._namespace = namespace

    def __call__(self, found: ServeStatus) -> None:
        with self._lock:
            if self._live is None:
                self._say(_lines_of(found), is_all=True)
            elif not found.applications:
                self._live.update(Text(f"No application is deployed in namespace {self._namespace!r}."), refresh=True)
            else:
                tables = (_applications(found), _deployments(found, with_queues=False), _workers(found))
                self._live.update(Group(*(part for table in tables for part in (table, Text("")))), refresh=True)


def _lines_of(found: ServeStatus) -> dict[str, str]:
    """The status as a line for each deployment and worker."""
    lines = {
        f"{app}.{name}": ", ".join(part for part in (told.status, _states(told), brief(told.message)) if part)
        for app, info in found.applications.items()
        for name, told in info.deployments.items()
    }
    return lines | {f"worker {node.node_id}": "draining" if node.draining else "joined" for node in found.nodes}


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


def _applications(found: ServeStatus) -> Table:
    return _table("APPLICATION STATUS", ((name, app.status) for name, app in found.applications.items()))


def _deployments(found: ServeStatus, *, with_queues: bool, paused: Collection[str] = ()) -> Table:
    rows = (
        (
            f"{app}.{name}",
            told.status,
            _states(told),
            *((str(told.waiting), str(told.running)) if with_queues else ()),
            brief(told.message) or (f"paused: `qserve resume {app}.{name}`" if f"{app}.{name}" in paused else ""),
        )
        for app, info in found.applications.items()
        for name, told in info.deployments.items()
    )
    return _table(f"DEPLOYMENT STATUS REPLICAS {'WAITING RUNNING ' if with_queues else ''}MESSAGE", rows)


def _states(told: DeploymentStatusInfo) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(told.replica_states.items())) or "none"


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


def _time(at_s: float) -> str:
    """A moment, in this host's time zone."""
    return datetime.fromtimestamp(at_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _age(age_s: float) -> str:
    """How long something has been there, in its largest unit."""
    for size_s, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if age_s >= size_s:
            return f"{age_s // size_s:.0f}{unit}"
    return f"{max(0.0, age_s):.0f}s"


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
