"""`qserve scale`, `pause`, `resume`, `restart` and `rollback`: what operators do to what is deployed."""

from __future__ import annotations

import json

import click

from qserve import api
from qserve.cli.changing import app_and_deployment, carry_out, wait_options
from qserve.cli.options import Command, use_cluster

_PATH = "APP[.DEPLOYMENT]"


@click.command(
    cls=Command,
    examples=(
        "qserve scale default.Greeter 4",
        "qserve scale shop.Search 2 --timeout-s 300",
    ),
)
@click.argument("path", metavar="APP.DEPLOYMENT")
@click.argument("replicas", type=click.IntRange(min=1), metavar="N")
@wait_options("How long to wait until so many run.")
def scale(path: str, replicas: int, how: api.Waits) -> None:
    """Change how many replicas a deployment has.

    Nothing restarts. The next deploy brings back the number of the code or the config file. An autoscaled deployment is
    refused: its min_replicas and max_replicas are its limits.
    """
    app, deployment = app_and_deployment(path)
    if deployment is None:
        raise click.UsageError(f"{path!r} is not APP.DEPLOYMENT: `qserve status` lists them.")
    use_cluster()
    name = deployment
    carry_out(lambda waits: api.scale(app, name, replicas, **waits), how, f"{path} has its replicas.")


@click.command(
    cls=Command,
    examples=(
        "qserve pause shop            # all of its deployments",
        "qserve pause shop.Search     # one of them",
    ),
)
@click.argument("path", metavar=_PATH)
@wait_options("How long to wait until it is paused.")
def pause(path: str, how: api.Waits) -> None:
    """Have replicas take no more calls.

    What runs is finished; what is called waits in the queue until `qserve resume` or the next deploy. The replicas
    stay.
    """
    app, deployment = app_and_deployment(path)
    use_cluster()
    carry_out(
        lambda waits: api.pause(app, deployment, **waits), how, f"{path} is paused; `qserve resume {path}` goes on."
    )


@click.command(
    cls=Command,
    examples=("qserve resume shop.Search",),
)
@click.argument("path", metavar=_PATH)
@wait_options("How long to wait until it takes calls.")
def resume(path: str, how: api.Waits) -> None:
    """Have paused replicas take calls again."""
    app, deployment = app_and_deployment(path)
    use_cluster()
    carry_out(lambda waits: api.resume(app, deployment, **waits), how, f"{path} takes calls.")


@click.command(
    cls=Command,
    examples=(
        "qserve restart shop.Search   # after a leak, or when a file that it reads has changed",
        "qserve restart shop --timeout-s 600",
    ),
)
@click.argument("path", metavar=_PATH)
@wait_options("How long to wait until the new replicas run.")
def restart(path: str, how: api.Waits) -> None:
    """Replace replicas by new ones of the same code.

    The new ones serve before the old ones go: no call fails.
    """
    app, deployment = app_and_deployment(path)
    use_cluster()
    carry_out(lambda waits: api.restart(app, deployment, **waits), how, f"{path} runs on new replicas.")


@click.command(
    cls=Command,
    examples=(
        "qserve rollback shop --list",
        "qserve rollback shop         # to the version before",
        "qserve rollback shop --to 3",
    ),
)
@click.argument("app")
@click.option("--to", type=int, metavar="N", help="How many versions back.  [default: 1]")
@click.option("--list", "is_list", is_flag=True, help="Show the versions there are, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --list, for programs.")
@wait_options("How long to wait until it runs.")
def rollback(app: str, to: int | None, how: api.Waits, *, is_list: bool, as_json: bool) -> None:
    """Deploy an application as it was before.

    The last five versions are kept, with their code. The new replicas serve before the old ones go; a rollback is a
    deploy, so another one undoes it.
    """
    from qserve.cli import show

    use_cluster()
    if not is_list and not as_json:
        carry_out(lambda waits: api.rollback(app, to, **waits), how, f"Application {app!r} is as it was before.")
        return
    versions = api.history(app)
    if as_json:
        click.echo(json.dumps([version.model_dump(mode="json") for version in versions], indent=2))
    else:
        show.versions(versions)
