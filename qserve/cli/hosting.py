"""`qserve worker`, `autoscaler` and `broker run`: the processes that a cluster is made of."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TypedDict, Unpack

import click
from click.core import ParameterSource

from qserve.api import DEFAULT_APP
from qserve.cli.options import Command, heartbeat_option, use_cluster, use_settings
from qserve.cli.stopping import Stopped, stoppable
from qserve.config import KEEP_LINES
from qserve.errors import BrokerUnavailable
from qserve.spec import NodeRecord
from qserve.store.embedded import EmbeddedBroker, shared_folder


class _Offer(TypedDict):
    """What a worker says of its host, as it was typed."""

    num_cpus: float | None
    num_gpus: int | None
    memory: str | None
    resources: tuple[str, ...]
    labels: tuple[str, ...]
    deployments: str | None


@click.command(
    cls=Command,
    examples=(
        "qserve worker",
        "qserve worker --num-cpus 4 --memory 8G --resource tickets=2 --label zone=eu",
        "qserve worker --deployments chat.Embedder,images",
        "qserve worker hello:app --replicas Greeter=2 --replicas Caller=1   # needs no autoscaler",
    ),
)
@click.argument("app", required=False, metavar="[MODULE:APP]")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--replicas", multiple=True, metavar="DEPLOYMENT=N", help="How many of it to host here; repeatable.")
@click.option("--name", default=DEFAULT_APP, show_default=True, help="What MODULE:APP is deployed as.")
@click.option("--num-cpus", type=click.FloatRange(min=0), metavar="N", help="CPUs to offer; else all of the host's.")
@click.option("--num-gpus", type=click.IntRange(min=0), metavar="N", help="GPUs to offer; else all that are found.")
@click.option("--memory", metavar="SIZE", help="Memory to offer: bytes, or 8G; else all of the host's.")
@click.option("--resource", "resources", multiple=True, metavar="NAME=N", help="Something else to offer; repeatable.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="What replicas may ask for; repeatable.")
@click.option("--deployments", metavar="A,B", help="Host only these: applications, deployments, or APP.DEPLOYMENT.")
@click.option(
    "--log-lines",
    type=click.IntRange(min=0),
    default=KEEP_LINES,
    show_default=True,
    metavar="N",
    help="Lines of each deployment's replicas to keep for `qserve logs`; 0 keeps none.",
)
@heartbeat_option
@click.pass_context
def worker(
    context: click.Context,
    app: str | None,
    arguments: tuple[str, ...],
    replicas: tuple[str, ...],
    name: str,
    log_lines: int,
    **offer: Unpack[_Offer],
) -> None:
    """Host replicas on this machine.

    One worker runs on every host that offers capacity. TERM or Ctrl-C lets running calls finish and hands the rest to
    others; a second one ends at once. Deployed code is imported here: start it where the modules of your applications
    are, in this folder or installed.

    With MODULE:APP it deploys that application and hosts a fixed number of its replicas by itself, without an
    autoscaler: --replicas of each deployment, none of those that are not named, one of each without the option. Several
    such workers add up. TERM leaves the application deployed, and its calls wait; `qserve delete` ends the workers.
    Each worker keeps the code that it started with: to bring in new code, restart them one after the other.
    """
    from qserve.cli.fixed import load as load_fixed
    from qserve.node.door import run_worker

    settings = use_cluster(log_level="INFO")
    if app is None:
        if replicas or context.get_parameter_source("name") is not ParameterSource.DEFAULT:
            raise click.UsageError("--replicas and --name are for a worker that hosts MODULE:APP: name it as well.")
        context.exit(run_worker(settings, _node(offer), log_lines=log_lines))
    if offer["deployments"]:
        raise click.UsageError("A worker of MODULE:APP hosts nothing else: leave --deployments out.")
    fixed = load_fixed(app, _pairs(arguments), name=name, replicas=_pairs(replicas))
    record = _node(offer, least_cpus=fixed.num_cpus)
    context.exit(
        run_worker(settings, record.model_copy(update={"deployments": (name,)}), log_lines=log_lines, fixed=fixed)
    )


@click.command(
    cls=Command,
    examples=("qserve autoscaler",),
)
@heartbeat_option
@click.pass_context
def autoscaler(context: click.Context) -> None:
    """Decide which worker runs which replicas.

    Start two or three: one leads, the others take over when it dies. Autoscaling policies of your own are looked for in
    this folder first.
    """
    from qserve.controller.door import run_autoscaler

    sys.path.insert(0, str(Path.cwd()))

    context.exit(run_autoscaler(use_cluster(log_level="INFO")))


@click.group()
def broker() -> None:
    """A server for this host, with nothing to install."""


@broker.command(
    name="run",
    cls=Command,
    examples=(
        "qserve broker run --data-dir ~/qserve-data",
        "export QSERVE_REDIS_URL=unix:///home/me/qserve-data/q.sock   # it prints this line",
        "qserve worker                                                # in another terminal",
    ),
)
@click.option("--data-dir", metavar="FOLDER", help="Where its data stays; else the user's runtime folder.")
def run_broker(data_dir: str | None) -> None:
    """Run a server on a socket that only you can reach, until Ctrl-C. Its data stays for the next start."""
    from qserve.cli import show

    settings = use_settings(log_level="INFO", data_dir=data_dir)
    served = EmbeddedBroker(settings, shared_folder(settings), keep=True)
    with stoppable():
        try:
            served.start()
            served.wait_ready()
            show.broker(settings, served)
            code = served.wait()
        except Stopped:
            return  # it was asked to leave, as a daemon is
        finally:
            served.stop()
    raise BrokerUnavailable(f"The broker in {served.folder} ended by itself (exit code {code}); broker.log says why.")


def _node(offer: _Offer, *, least_cpus: float = 0.0) -> NodeRecord:
    """What this host offers: what was typed, else what is found here; of CPUs that nobody counted, at least so many."""
    from qserve.node.resources import describe, offered

    custom = {name: _number(name, text) for name, text in _pairs(offer["resources"]).items()}
    size = None if offer["memory"] is None else _size_bytes(offer["memory"])
    found = offered(offer["num_cpus"], custom, num_gpus=offer["num_gpus"], memory=size)
    if offer["num_cpus"] is None:
        found["num_cpus"] = max(found["num_cpus"], least_cpus)
    return describe(
        resources=found,
        labels=_pairs(offer["labels"]),
        deployments=tuple(part.strip() for part in (offer["deployments"] or "").split(",") if part.strip()),
    )


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [name for name, equals, value in pairs if not (name and equals and value)]:
        raise click.UsageError(f"{wrong[0]!r} is not NAME=VALUE.")
    return {name: value for name, _, value in pairs}


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise click.UsageError(f"--resource {name}={text}: how many there are is a number, 0 or more.")
    return number


def _size_bytes(text: str) -> float:
    """Bytes, or a number with one of K, M, G, T, each 1024 of the one before; "8Gi" and "8GB" are the same."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])i?)?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise click.UsageError(
            f"--memory {text}: a size is a number of bytes, or one with a letter, such as 512M or 8G."
        )
    number, letter = match.groups()
    return float(number) * 1024.0 ** " KMGT".index((letter or " ").upper())
