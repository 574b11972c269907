"""`qserve run`: applications in the foreground; and how `run` and `deploy` find them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import click

from qserve import api, local
from qserve.cli.options import Command, timeout_option, use_settings
from qserve.cli.stopping import Stopped, stoppable
from qserve.errors import TransportError, UsageError

app_dir_option = click.option(
    "--app-dir", "-d", default=".", show_default=True, metavar="FOLDER", help="Where modules are looked for first."
)


class Named(TypedDict):
    """What `run` is to deploy, as it was typed; what `load` takes."""

    source: str
    arguments: tuple[str, ...]
    name: str
    app_dir: str
    route_prefix: str | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a command is to deploy.

    notes      what the config file asks for and does not get
    is_config  it was a config file
    """

    targets: list[api.RunTarget]
    notes: list[str]
    is_config: bool

    def say_notes(self) -> None:
        """On stderr."""
        for note in self.notes:
            click.echo(f"Note: {note}", err=True)


def load(source: str, arguments: tuple[str, ...], name: str, app_dir: str, route_prefix: str | None = None) -> Loaded:
    """The applications that FILE or MODULE:APP names, built from the modules of the folder."""
    from qserve.deploying import files

    pairs = builder_arguments(source, arguments)
    sys.path.insert(0, str(Path(app_dir).resolve()))
    if files.is_config(source):
        return Loaded(*files.from_config(source), is_config=True)
    target = files.from_import_path(source, pairs, name=name, route_prefix=route_prefix or api.Unsaid.ROUTE)
    return Loaded([target], [], is_config=False)


def builder_arguments(source: str, arguments: tuple[str, ...]) -> dict[str, str]:
    """The KEY=VALUEs. Raises click's UsageError when one is not, or has no place."""
    from qserve.deploying import files

    if arguments and files.is_config(source):
        raise click.UsageError(f"A config file has its own `args`; {arguments[0]!r} goes with MODULE:APP.")
    pairs = [argument.partition("=") for argument in arguments]
    if wrong := [name for name, equals, _ in pairs if not equals or not name]:
        raise click.UsageError(f"{wrong[0]!r} is not KEY=VALUE.")
    return {name: value for name, _, value in pairs}


@click.command(
    cls=Command,
    examples=(
        "qserve run hello:app",
        "qserve run hello:app --reload",
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
@click.option("--reload", is_flag=True, help="Deploy again whenever a .py file of that folder, or FILE, changes.")
@click.option(
    "--reload-dir",
    "reload_dirs",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    metavar="FOLDER",
    help="With --reload: another folder to watch; repeatable.",
)
@timeout_option(60.0, "How long to wait until it runs.")
def run(*, reload: bool, reload_dirs: tuple[str, ...], timeout_s: float, **named: Unpack[Named]) -> None:
    """Serve an application until Ctrl-C, then take it down.

    MODULE:APP is what `.bind()` made, or a function that returns that; such a function may take one dict, the
    KEY=VALUEs. FILE is a config file as `qserve deploy` takes it. Modules are looked for in this folder first. Without
    QSERVE_REDIS_URL a cluster of its own starts on this host, and ends with it.

    With --reload new replicas serve before the old ones go; code that does not start leaves the old ones serving.
    """
    if reload_dirs and not reload:
        raise click.UsageError("--reload-dir says where --reload looks: give both.")
    is_embedded = use_settings(log_level="WARNING").redis_url is None
    with stoppable():
        if reload:
            from qserve.cli import reloading

            reloading.serve(named, timeout_s, reload_dirs, is_embedded=is_embedded)
        loaded = load(**named)
        loaded.say_notes()
        _serve(loaded.targets, timeout_s, is_embedded=is_embedded)


def _serve(targets: list[api.RunTarget], timeout_s: float, *, is_embedded: bool) -> None:
    """Deploy, stay until a signal, and take down what is ours."""
    from qserve.cli import show

    names = [target.name for target in targets]
    there = set() if is_embedded else set(names) & api.status().applications.keys()
    try:
        built = api.build(targets)
        put_up(built, timeout_s, is_embedded=is_embedded)
        show.running(handles_of(built), local.write_env_file())
        threading.Event().wait()
    except BaseException as error:
        take_down(names, there, error, is_embedded=is_embedded)
        raise


def put_up(built: Sequence[api.Built], timeout_s: float, *, is_embedded: bool) -> None:
    """Deploy what was built, with a line for each deployment until it runs."""
    from qserve.cli import show

    with show.Progress(is_embedded=is_embedded) as progress:
        api.deploy(built, timeout_s=timeout_s, on_progress=progress)


def handles_of(built: Sequence[api.Built]) -> list[str]:
    """APP.DEPLOYMENT of each application's outermost deployment."""
    return [f"{app.name}.{app.flat.spec.ingress}" for app in built]


def take_down(names: Collection[str], there: Collection[str], error: BaseException, *, is_embedded: bool) -> None:
    """Take down what is ours: not what others deployed before, when ours did not come up.

    names  of the applications that were deployed
    there  those of them that were deployed before
    error  what ends the command
    """
    from qserve.cli import show

    if isinstance(error, Stopped) and names:
        show.line(f"Taking {', '.join(map(repr, names))} down; once more ends it at once.")
    if is_embedded:
        api.shutdown()
        return
    for name in names:
        if isinstance(error, Stopped) or not (name in there or isinstance(error, UsageError | TransportError)):
            api.delete(name)
        elif name in there:
            show.line(f"{name!r} was deployed before, and is not taken down: `qserve status` shows it.")
