"""`qserve status`, `ps` and `doctor`: what runs, and what is wrong."""

from __future__ import annotations

import json
import time

import click

from qserve import api, loops
from qserve.cli.options import Command, use_cluster, use_settings
from qserve.errors import DeploymentNotFound
from qserve.spec import ApplicationStatus

_BROKEN = frozenset({ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY})


@click.command(
    cls=Command,
    examples=(
        "qserve status",
        "qserve status default --json",
        "qserve status --watch",
        "qserve status shop --decisions   # what the autoscaler did, and why",
    ),
)
@click.argument("app", required=False)
@click.option("--name", "-n", metavar="APP", help="The same as APP.")
@click.option("--watch", "-w", is_flag=True, help="Go on showing it, whenever it changes; Ctrl-C ends it.")
@click.option("--decisions", is_flag=True, help="Of APP: each change of its replicas by the autoscaler.")
@click.option("--json", "as_json", is_flag=True, help="For programs: what serve.status() returns.")
@click.pass_context
def status(
    context: click.Context, app: str | None, name: str | None, *, watch: bool, decisions: bool, as_json: bool
) -> None:
    """Show applications, deployments, queues and workers.

    Exits with 1 when an application is DEPLOY_FAILED or UNHEALTHY.
    """
    settings = use_cluster()
    chosen = app or name
    if decisions:
        if chosen is None:
            raise click.UsageError("Whose decisions? `qserve status APP --decisions`.")
        _show_decisions(chosen, as_json=as_json)
    elif watch:
        _watch(settings.namespace, chosen, as_json=as_json)
    else:
        context.exit(_show_status(settings.namespace, chosen, as_json=as_json))


def _show_status(namespace: str, name: str | None, *, as_json: bool) -> int:
    from qserve.cli import show

    found = api.status(name)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        paused = {f"{app.name}.{spec.name}" for app in api.wanted() for spec in app.deployments if spec.paused}
        show.status(found, namespace, paused)
    return int(any(app.status in _BROKEN for app in found.applications.values()))


def _watch(namespace: str, name: str | None, *, as_json: bool) -> None:
    from qserve.cli import show

    if as_json:
        api.watch(lambda found: click.echo(json.dumps(found.to_dict())), name)
    with show.Watch(namespace) as watched:
        api.watch(watched, name)


def _show_decisions(app: str, *, as_json: bool) -> None:
    from qserve.cli import show

    found = api.decisions(app)
    if as_json:
        plain = {path: [decision.model_dump(mode="json") for decision in made] for path, made in found.items()}
        click.echo(json.dumps(plain, indent=2))
    elif any(found.values()):
        show.decisions(found)
    else:
        click.echo(f"The autoscaler has changed nothing of {app!r} yet.")


@click.command(
    cls=Command,
    examples=(
        "qserve ps",
        "qserve ps shop.Search --json",
    ),
)
@click.argument("path", required=False, metavar="[APP[.DEPLOYMENT]]")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def ps(path: str | None, *, as_json: bool) -> None:
    """Show replicas: what runs where, and since when."""
    from qserve.cli import show

    use_cluster()
    found = [
        replica for replica in api.replicas() if path in (None, replica.app, f"{replica.app}.{replica.deployment}")
    ]
    if path is not None and not found:
        _check_there(path)
    if as_json:
        click.echo(json.dumps([replica.model_dump(mode="json") for replica in found], indent=2))
    elif found:
        show.replicas(found, time.time())
    else:
        click.echo("No replica is there." if path is None else f"No replica of {path!r} is there.")


def _check_there(path: str) -> None:
    """Raises ApplicationNotFound or DeploymentNotFound: a name that was mistyped is not one without replicas."""
    app, _, deployment = path.partition(".")
    there = api.status(app).applications[app].deployments
    if deployment and deployment not in there:
        raise DeploymentNotFound(
            f"Deployment {deployment!r} does not exist in application {app!r}. It has: {list(there)}."
        )


@click.command(
    cls=Command,
    examples=(
        "qserve doctor",
        "qserve doctor --json",
    ),
)
@click.option("--json", "as_json", is_flag=True, help="For programs: every check with its verdict.")
@click.pass_context
def doctor(context: click.Context, *, as_json: bool) -> None:
    """Find what keeps a cluster from working, and say the mend.

    Changes nothing. Exits with 1 when a check fails.
    """
    from qserve import doctor as examination
    from qserve.cli import show

    settings = use_settings()
    checks = loops.run(examination.examine(settings), settings)
    failed = examination.has_failed(checks)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [check.to_dict() for check in checks]}, indent=2))
    else:
        show.checks(checks)
    context.exit(int(failed))
