"""`qserve call`, `delete` and `shutdown`: what changes a cluster from a terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from qserve import api
from qserve.cli.options import Command, timeout_option, use_cluster


@click.command(
    cls=Command,
    examples=(
        "qserve call default.Greeter.say_hi '[\"world\"]'",
        'qserve call default.Adder \'{"left": 1, "right": 2}\'',
        'qserve call shop.Search.find \'[{"text": "shoes"}]\' --timeout-s 5',
    ),
)
@click.argument("path", metavar="APP.DEPLOYMENT[.METHOD]")
@click.argument("arguments", default="[]", metavar="[JSON]")
@timeout_option(60.0, "How long to wait for the reply; the call itself goes on.")
def call(path: str, arguments: str, timeout_s: float) -> None:
    """Call a deployment and print its result as JSON.

    A JSON list holds positional arguments, an object keyword arguments.
    """
    args, kwargs = _arguments(arguments)
    if "." not in path.strip("."):
        raise click.UsageError(f"{path!r} is not APP.DEPLOYMENT or APP.DEPLOYMENT.METHOD: `qserve status` lists them.")
    use_cluster()
    handle = api.get_handle_at(path).options(request_serialization="json")
    result = handle.remote(*args, **kwargs).result(timeout_s=timeout_s)
    click.echo(json.dumps(result, ensure_ascii=False))


@click.command(
    cls=Command,
    examples=("qserve delete default",),
)
@click.argument("app")
@timeout_option(60.0, "How long to wait until it is gone.")
def delete(app: str, timeout_s: float) -> None:
    """Take an application down.

    Running calls finish, waiting ones are refused.
    """
    use_cluster()
    api.status(app)
    api.delete(app, timeout_s=timeout_s)
    _report({app})


@click.command(
    cls=Command,
    examples=("qserve shutdown --yes",),
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@timeout_option(60.0, "How long to wait until they are gone.")
def shutdown(*, yes: bool, timeout_s: float) -> None:
    """Take all applications of the namespace down. Workers and autoscalers go on, idle."""
    settings = use_cluster()
    apps = set(api.status().applications)
    if not apps:
        click.echo(f"No application is deployed in namespace {settings.namespace!r}.")
        return
    if not yes and not sys.stdin.isatty():
        raise click.UsageError(f"This would delete {sorted(apps)}, and nobody is there to ask: say --yes.")
    if not yes:
        click.confirm(f"Delete {', '.join(sorted(apps))} of namespace {settings.namespace!r}?", abort=True)
    api.shutdown(timeout_s=timeout_s)
    _report(apps)


def _arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"The arguments {text!r} are not JSON: {error}. Quote them: '[\"text\", 1]'.") from error
    if isinstance(value, list):
        return value, {}
    if isinstance(value, dict):
        return [], value
    raise click.UsageError(f"The arguments are a JSON list or object; write '[{text}]' for one argument.")


def _report(apps: set[str]) -> None:
    left = apps & api.status().applications.keys()
    if left:
        click.echo(f"Not wanted any more: {', '.join(sorted(left))}. They go on until a `qserve autoscaler` runs.")
    else:
        click.echo(f"Deleted: {', '.join(sorted(apps))}.")
