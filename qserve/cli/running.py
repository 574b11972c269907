"""`qserve run`: applications in the foreground; and how `run` and `deploy` find them."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from qserve import api, local
from qserve.cli.options import Command, timeout_option, use_settings
from qserve.cli.stopping import Stopped, stoppable
from qserve.errors import TransportError, UsageError

app_dir_option = click.option(
    "--app-dir", "-d", default=".", show_default=True, metavar="FOLDER", help="Where modules are looked for first."
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a command is to deploy.

    notes      what the config file asks for and does not get
    is_config  it was a config file
    """

    targets: list[api.RunTarget]
    notes: list[str]
    is_config: bool


def load(
    source: str, arguments: tuple[str, ...], name: str, app_dir: str, route_prefix: Any = api.Unsaid.ROUTE
) -> Loaded:
    """The applications that FILE or MODULE:APP names, built from the modules of the folder."""
    from qserve.deploying import files

    sys.path.insert(0, str(Path(app_dir).resolve()))
    if not files.is_config(source):
        pairs = _pairs(arguments)
        target = files.from_import_path(source, pairs, name=name, route_prefix=route_prefix)
        return Loaded([target], [], is_config=False)
    if arguments:
        raise click.UsageError(f"A config file has its own `args`; {arguments[0]!r} goes with MODULE:APP.")
    return Loaded(*files.from_config(source), is_config=True)


@click.command(
    cls=Command,
    examples=(
        "qserve run hello:app",
        "qserve run models:build size=large device=cpu",
        "qserve run hello:app --name greetings --timeout-s 300",
        "qserve run serve.yaml",
    ),
)
@click.argument("source", metavar="MODULE:APP|FILE")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--name", default=api.DEFAULT_APP, show_default=True, help="One of this name is replaced.")
@click.option("--route-prefix", metavar="PATH", help="Where an HTTP ingress shows it; else / if it is free.")
@app_dir_option
@timeout_option(60.0, "How long to wait until it runs.")
def run(
    source: str, arguments: tuple[str, ...], name: str, route_prefix: str | None, app_dir: str, timeout_s: float
) -> None:
    """Serve an application until Ctrl-C, then take it down.

    MODULE:APP is what `.bind()` made, or a function that returns that; such a function may take one dict, the
    KEY=VALUEs. FILE is a config file as `qserve deploy` takes it. Modules are looked for in this folder first. Without
    QSERVE_REDIS_URL a cluster of its own starts on this host, and ends with it.
    """
    is_embedded = use_settings(log_level="WARNING").redis_url is None
    with stoppable():
        loaded = load(source, arguments, name, app_dir, route_prefix or api.Unsaid.ROUTE)
        for note in loaded.notes:
            click.echo(f"Note: {note}", err=True)
        _serve(loaded.targets, timeout_s, is_embedded=is_embedded)


def _serve(targets: list[api.RunTarget], timeout_s: float, *, is_embedded: bool) -> None:
    """Deploy, stay until a signal, and take down what is ours."""
    from qserve.cli import show

    names = [target.name for target in targets]
    there = set() if is_embedded else set(names) & api.status().applications.keys()
    try:
        with show.Progress(is_embedded=is_embedded) as progress:
            built = api.build(targets)
            api.deploy(built, timeout_s=timeout_s, on_progress=progress)
        show.running([f"{app.name}.{app.flat.spec.ingress}" for app in built], local.write_env_file())
        threading.Event().wait()
    except BaseException as error:
        if isinstance(error, Stopped):
            show.line(f"Taking {', '.join(map(repr, names))} down; once more ends it at once.")
        if is_embedded:
            api.shutdown()
        else:
            _take_down(names, there, error)
        raise


def _take_down(names: list[str], there: set[str], error: BaseException) -> None:
    """Delete what is ours: not what others deployed before, when ours did not come up."""
    from qserve.cli import show

    for name in names:
        if isinstance(error, Stopped) or not (name in there or isinstance(error, UsageError | TransportError)):
            api.delete(name)
        elif name in there:
            show.line(f"{name!r} was deployed before, and is not taken down: `qserve status` shows it.")


def _pairs(arguments: tuple[str, ...]) -> dict[str, str]:
    pairs = [argument.partition("=") for argument in arguments]
    if wrong := [name for name, equals, _ in pairs if not equals or not name]:
        raise click.UsageError(f"{wrong[0]!r} is not KEY=VALUE.")
    return {name: value for name, _, value in pairs}
