"""`qserve status` and `doctor`: what runs, and what is wrong."""

from __future__ import annotations

import json

import click

from qserve import api, loops
from qserve.cli.options import Command, use_cluster, use_settings
from qserve.spec import ApplicationStatus

_BROKEN = frozenset({ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY})


@click.command(
    cls=Command,
    examples=(
        "qserve status",
        "qserve status --name default --json",
    ),
)
@click.option("--json", "as_json", is_flag=True, help="For programs: what serve.status() returns.")
@click.option("--name", metavar="APP", help="Only this application.")
@click.pass_context
def status(context: click.Context, *, as_json: bool, name: str | None) -> None:
    """Show applications, deployments, queues and workers.

    Exits with 1 when an application is DEPLOY_FAILED or UNHEALTHY.
    """
    from qserve.cli import show

    settings = use_cluster()
    found = api.status(name)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        show.status(found, settings.namespace)
    context.exit(int(any(app.status in _BROKEN for app in found.applications.values())))


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
