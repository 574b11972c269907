"""`qserve deploy`: a config file, or one application, put up for good."""

from __future__ import annotations

import click

from qserve import api
from qserve.cli.changing import wait_options
from qserve.cli.options import Command, use_cluster
from qserve.cli.running import app_dir_option, load


@click.command(
    cls=Command,
    examples=(
        "qserve deploy serve.yaml --dry-run",
        "qserve deploy serve.yaml",
        "qserve deploy hello:app --name greetings",
        "qserve deploy models:build size=large --timeout-s 600",
    ),
)
@click.argument("source", metavar="FILE|MODULE:APP")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--name", default=api.DEFAULT_APP, show_default=True, help="Of MODULE:APP; a file has its own names.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@app_dir_option
@wait_options("How long to wait until all of it runs.")
def deploy(source: str, arguments: tuple[str, ...], name: str, app_dir: str, how: api.Waits, *, dry_run: bool) -> None:
    """Deploy what a config file says, or one application.

    FILE (.yaml, .json; the format is Ray Serve's) says what is to run: applications that are not in it are deleted, and
    all of it changes in one step. MODULE:APP changes that application only. Equal code restarts nothing; new replicas
    serve before old ones go; a version that does not start leaves the old one serving.
    """
    from qserve.cli import show

    use_cluster()
    loaded = load(source, arguments, name, app_dir)
    for note in loaded.notes:
        click.echo(f"Note: {note}", err=True)
    built = api.build(loaded.targets)
    show.plan(api.preview(built, only_these=loaded.is_config).steps)
    if dry_run:
        return
    with show.Progress(is_embedded=False) as progress:
        how["on_progress"] = progress
        api.deploy(built, only_these=loaded.is_config, **how)
    if not how.get("wait", True):
        click.echo("It goes on by itself: `qserve status --watch` follows it.")
        return
    for app in built:
        click.echo(f"Application {app.name!r} is running; its handle is {app.name}.{app.flat.spec.ingress}.")
