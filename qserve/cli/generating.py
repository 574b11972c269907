"""`qserve generate`: the files with which a supervisor runs a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from qserve.cli.options import Command, typed
from qserve.deploying.targets import DEFAULT_APP
from qserve.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
_POSITIVE = click.FloatRange(min=0, min_open=True)


def _shared(*, workers: int, image: bool = True) -> Callable[[F], F]:
    """What all generators are told. `workers` is how many there are where nobody says."""
    options = [
        click.argument("apps", nargs=-1, metavar="[MODULE:APP]..."),
        click.option("--workers", type=click.IntRange(1), default=workers, show_default=True, metavar="N"),
        click.option(
            "--autoscalers", type=click.IntRange(0), metavar="N", help="One leads.  [default: 2; none with --replicas]"
        ),
        click.option(
            "--replicas",
            multiple=True,
            metavar="NAME=N",
            help="Each worker hosts so many of MODULE:APP's deployment by itself; repeatable. No autoscaler runs then.",
        ),
        click.option("--name", metavar="APP", help="What --replicas deploys MODULE:APP as.  [default: default]"),
        click.option("--image", default="qserve", show_default=True, help="With your modules in it.")
        if image
        else None,
        click.option("--gpus", type=click.IntRange(0), default=0, metavar="N", help="Of each worker."),
        click.option("--cpus", type=_POSITIVE, metavar="N", help="Of each worker."),
        click.option("--memory-gib", type=_POSITIVE, metavar="N", help="Of each worker."),
        click.option("--deployments", multiple=True, metavar="A,B", help="Workers that host only these; repeatable."),
        click.option("--schedulers", type=click.IntRange(0), default=0, metavar="N", help="For recurring calls."),
        click.option(
            "--grace",
            type=click.IntRange(1),
            metavar="S",
            help="From TERM to KILL.  [default: 10 s above the longest graceful_shutdown_timeout_s of MODULE:APPs]",
        ),
        click.option("--output", "-o", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER"),
        click.option("--force", is_flag=True, help="Overwrite files in FOLDER that differ."),
    ]

    def decorate(command: F) -> F:
        for option in filter(None, reversed(options)):
            command = option(command)
        return command

    return decorate


@click.group()
def generate() -> None:
    """Files that run a cluster: systemd, Compose, Kubernetes.

    They hold no secrets: each says at its head where the key goes. --redis-url names a server that is there; without
    it a Valkey is set up beside the rest. Of a password in that URL only that there is one counts: type any word.
    """


@generate.command(
    cls=Command,
    examples=(
        "qserve generate systemd -o units",
        "qserve generate systemd --redis-url redis://redis.internal:6379/0 --cpus 8 --memory-gib 28",
        "qserve generate systemd shop:app --replicas Search=2",
    ),
)
@_shared(workers=1, image=False)
@click.option("--venv", default="/opt/qserve/venv", show_default=True, help="Where qserve is installed.")
@click.option("--app-dir", default="/opt/qserve/app", show_default=True, help="Where your modules are.")
@click.option("--user", default="qserve", show_default=True, help="Who runs it.")
def systemd(venv: str, app_dir: str, user: str, **given: Any) -> None:
    """Units for one host: workers as instances of a template, an autoscaler, and what Valkey needs to be told."""
    from qserve import generate as files

    place = files.Place(venv=venv, app_dir=app_dir, user=user)
    _deliver(files.systemd(_stack(given), place), given)


@generate.command(
    cls=Command,
    examples=(
        "qserve generate compose > docker-compose.yml",
        "qserve generate compose --image my-app:1 --workers 4 --gpus 1 -o .",
    ),
)
@_shared(workers=2)
def compose(**given: Any) -> None:
    """One file for `docker compose up`: Valkey, workers, autoscalers on one machine."""
    from qserve import generate as files

    _deliver(files.compose(_stack(given)), given)


@generate.command(
    cls=Command,
    name="k8s",
    examples=(
        "qserve generate k8s --image my-app:1 | kubectl apply --namespace ml -f -",
        "qserve generate k8s shop:app --image my-app:1 --scaler keda --scale-on shop.Search=10 -o manifests",
        "qserve generate k8s shop:app --replicas Search=2 --name shop --scaler keda --scale-on shop.Search=4",
        "qserve generate k8s --image my-app:1 --scaler hpa --max-workers 20",
    ),
)
@_shared(workers=2)
@click.option(
    "--scaler",
    type=click.Choice(("none", "keda", "hpa")),
    default="none",
    show_default=True,
    help="What changes the number of workers: KEDA by the calls in Redis, an HPA by CPU.",
)
@click.option(
    "--scale-on",
    multiple=True,
    metavar="APP.DEPLOYMENT=N",
    help="Calls, waiting and running, that one worker should carry; repeatable. For KEDA.",
)
@click.option("--max-workers", type=click.IntRange(1), default=10, show_default=True, metavar="N")
def kubernetes(scaler: str, scale_on: tuple[str, ...], max_workers: int, **given: Any) -> None:
    """Manifests for `kubectl apply`: Valkey, workers, autoscalers, and what scales the workers."""
    from qserve import generate as files

    if scale_on and scaler != "keda":
        raise click.UsageError("--scale-on is what KEDA counts: say --scaler keda.")
    scaling = files.Scaling(scaler, _scale_on(scale_on), max_workers)
    _deliver(files.kubernetes(_stack(given), scaling), given)


def _stack(given: Mapping[str, Any]) -> Any:
    """What the options describe. Loads the applications that are named."""
    from qserve.generate import Stack, grace_for, pools_of

    replicas = _counts("--replicas", given["replicas"])
    if replicas and given["autoscalers"]:
        raise click.UsageError("With --replicas workers host a fixed number by themselves: no autoscaler may run.")
    if given["name"] and not replicas:
        raise click.UsageError("--name is for workers that host MODULE:APP by themselves: say --replicas.")
    if replicas and len(given["apps"]) != 1:
        raise click.UsageError("--replicas says how many of one application's deployments: name one MODULE:APP.")
    configs = _configs(given["apps"])
    if unknown := replicas.keys() - configs.keys():
        raise click.UsageError(f"{given['apps'][0]} has no deployment {min(unknown)!r}: it has {sorted(configs)}.")
    memory_gib, shared = given["memory_gib"], typed()
    return Stack(
        workers=given["workers"],
        autoscalers=2 if given["autoscalers"] is None else given["autoscalers"],
        redis_url=shared.get("redis_url"),
        namespace=shared.get("namespace", "default"),
        image=given.get("image", "qserve"),
        gpus=given["gpus"],
        cpus=given["cpus"],
        memory_mib=None if memory_gib is None else round(memory_gib * 1024),
        pools=pools_of([_names(text) for text in given["deployments"]]),
        app=given["apps"][0] if replicas else None,
        name=given["name"] or DEFAULT_APP,
        replicas=replicas,
        grace_s=given["grace"] or grace_for(configs.values()),
        schedulers=given["schedulers"],
    )


def _configs(paths: tuple[str, ...]) -> dict[str, Any]:
    """The options of each deployment of these applications, by its name."""
    from qserve import graph, target

    if paths:
        sys.path.insert(0, str(Path.cwd()))
    apps = [target.load(path, {}) for path in paths]
    flat = [graph.flatten(app, name="generated", deploy_id="", now_s=0.0, route_prefix=None) for app in apps]
    return {spec.name: spec.config for app in flat for spec in app.spec.deployments}


def _deliver(files: Mapping[str, str], given: Mapping[str, Any]) -> None:
    """Into the folder, or to stdout. Nothing is written when a file would be lost."""
    from qserve.generate import together

    folder: Path | None = given["output"]
    if folder is None:
        click.echo(together(files), nl=False)
        return
    paths = {folder / name: text for name, text in files.items()}
    try:
        differing = [path for path, text in paths.items() if path.exists() and path.read_text(encoding="utf-8") != text]
        if differing and not given["force"]:
            names = ", ".join(map(str, differing))
            raise UsageError(f"There are other files of these names: {names}. --force overwrites them.")
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in paths.items():
            path.write_text(text, encoding="utf-8")
            click.echo(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The files cannot be written into {str(folder)!r}: {error}") from error


def _scale_on(texts: tuple[str, ...]) -> dict[tuple[str, str], int]:
    counts = _counts("--scale-on", texts)
    paths = {path: tuple(path.split(".")) for path in counts}
    if wrong := [path for path, parts in paths.items() if len(parts) != 2 or not all(parts)]:
        raise click.UsageError(f"--scale-on {wrong[0]}: write APP.DEPLOYMENT=N.")
    return {(parts[0], parts[1]): counts[path] for path, parts in paths.items()}


def _counts(option: str, texts: tuple[str, ...]) -> dict[str, int]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (name, _, number) in zip(texts, pairs, strict=True) if not _is_count(name, number)]:
        raise click.UsageError(f"{option} {wrong[0]}: write NAME=N, with a number of 1 or more.")
    return {name: int(number) for name, _, number in pairs}


def _is_count(name: str, number: str) -> bool:
    return bool(name) and number.isascii() and number.isdigit() and 0 < int(number) < 10_000


def _names(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise click.UsageError(f"--deployments {text!r} names none.")
    return names
