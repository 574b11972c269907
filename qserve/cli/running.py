"""`qserve run`: an application in the foreground."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import click

from qserve import api, target
from qserve.cli.options import Command, timeout_option, use_settings
from qserve.cli.stopping import Stopped, stoppable
from qserve.errors import TransportError, UsageError


@click.command(
    cls=Command,
    examples=(
        "qserve run hello:app",
        "qserve run models:build size=large device=cpu",
        "qserve run hello:app --name greetings --timeout-s 300",
    ),
)
@click.argument("app", metavar="MODULE:APP")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--name", default=api.DEFAULT_APP, show_default=True, help="One of this name is replaced.")
@click.option("--route-prefix", default="/", show_default=True, help="Where an HTTP ingress shows it.")
@timeout_option(60.0, "How long to wait until it runs.")
def run(app: str, arguments: tuple[str, ...], name: str, route_prefix: str, timeout_s: float) -> None:
    """Serve an application until Ctrl-C, then take it down.

    MODULE:APP is what `.bind()` made, or a function that returns that; such a function may take one dict, the
    KEY=VALUEs. The module is looked for in this folder first. Without QSERVE_REDIS_URL a cluster of its own starts on
    this host, and ends with it.
    """
    from qserve.cli import show

    is_embedded = use_settings(log_level="WARNING").redis_url is None
    sys.path.insert(0, str(Path.cwd()))
    with stoppable():
        application = target.load(app, _pairs(arguments))
        was_there = not is_embedded and name in api.status().applications
        try:
            with show.Progress(name, is_embedded=is_embedded) as progress:
                handle = api.run(
                    application, name=name, route_prefix=route_prefix, timeout_s=timeout_s, on_progress=progress
                )
            show.running(handle.deployment_id, api.write_env_file())
            threading.Event().wait()
        except BaseException as error:
            if isinstance(error, Stopped):
                show.line(f"Taking {name!r} down; once more ends it at once.")
            if is_embedded:
                api.shutdown()
            elif _is_ours(error, was_there=was_there):
                api.delete(name)
            elif was_there:
                show.line(f"{name!r} was deployed before, and is not taken down: `qserve status` shows it.")
            raise


def _is_ours(error: BaseException, *, was_there: bool) -> bool:
    """Whether the application of this name is to go: not what others deployed before, when ours did not come up."""
    return isinstance(error, Stopped) or not (was_there or isinstance(error, UsageError | TransportError))


def _pairs(arguments: tuple[str, ...]) -> dict[str, str]:
    pairs = [argument.partition("=") for argument in arguments]
    if wrong := [name for name, equals, _ in pairs if not equals or not name]:
        raise click.UsageError(f"{wrong[0]!r} is not KEY=VALUE.")
    return {name: value for name, _, value in pairs}
