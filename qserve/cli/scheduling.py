"""`qserve scheduler`, and `qserve cron`: calls that are made by the clock."""

from __future__ import annotations

import json

import click

from qserve import scheduling
from qserve.cli.options import Command, heartbeat_option, use_cluster
from qserve.errors import UsageError


@click.command(
    cls=Command,
    examples=("qserve scheduler",),
)
@heartbeat_option
@click.pass_context
def scheduler(context: click.Context) -> None:
    """Make recurring calls, and delayed ones.

    Needs pip install 'qserve[scheduler]'. Start two for safety: each run is made once, by one of them. Autoscalers make
    delayed calls as well; recurring ones need a scheduler.
    """
    from qserve.extras.scheduler import run_scheduler

    context.exit(run_scheduler(use_cluster(log_level="INFO")))


@click.group()
def cron() -> None:
    """Recurring calls, as serve.cron() registered them."""


@cron.command(
    name="list",
    cls=Command,
    examples=(
        "qserve cron list",
        "qserve cron list --json",
    ),
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_crons(*, as_json: bool) -> None:
    """Show recurring calls and when they run next."""
    from qserve.cli import show

    settings = use_cluster()
    found = scheduling.crons()
    if as_json:
        click.echo(json.dumps([each.to_dict() for each in found], indent=2))
    elif found:
        show.crons(found)
    else:
        click.echo(f"No recurring call is registered in namespace {settings.namespace!r}.")


@cron.command(
    cls=Command,
    examples=("qserve cron remove tidy",),
)
@click.argument("name")
def remove(name: str) -> None:
    """End a recurring call. A run that has begun goes on."""
    use_cluster()
    if not scheduling.uncron(name):
        there = [each.name for each in scheduling.crons()]
        raise UsageError(f"There is no recurring call {name!r}. There are: {there or 'none'}.")
    click.echo(f"{name} runs no more.")
