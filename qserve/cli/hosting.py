"""`qserve worker`, `autoscaler` and `broker run`: the processes that a cluster is made of."""

from __future__ import annotations

import click

from qserve.cli.options import Command, use_cluster, use_settings
from qserve.cli.stopping import Stopped, stoppable
from qserve.errors import BrokerUnavailable
from qserve.store.embedded import EmbeddedBroker, shared_folder


@click.command(
    cls=Command,
    examples=(
        "qserve worker",
        "qserve worker --num-cpus 4 --resource gpu_slots=2 --label zone=eu",
        "qserve worker --deployments chat.Embedder,images",
    ),
)
@click.option("--num-cpus", type=click.FloatRange(min=0), metavar="N", help="CPUs to offer; else all of the host's.")
@click.option("--resource", "resources", multiple=True, metavar="NAME=N", help="Something else to offer; repeatable.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="What replicas may ask for; repeatable.")
@click.option("--deployments", metavar="A,B", help="Host only these: applications, deployments, or APP.DEPLOYMENT.")
@click.pass_context
def worker(
    context: click.Context,
    num_cpus: float | None,
    resources: tuple[str, ...],
    labels: tuple[str, ...],
    deployments: str | None,
) -> None:
    """Host replicas on this machine.

    One worker runs on every host that offers capacity. TERM or Ctrl-C lets running calls finish and hands the rest to
    others; a second one ends at once. Deployed code is imported here: start it where the modules of your applications
    are, in this folder or installed.
    """
    from qserve.node.door import run_worker
    from qserve.node.resources import describe, offered

    settings = use_cluster(log_level="INFO")
    record = describe(
        resources=offered(num_cpus, {name: _number(name, text) for name, text in _pairs(resources).items()}),
        labels=_pairs(labels),
        deployments=tuple(part.strip() for part in (deployments or "").split(",") if part.strip()),
    )
    context.exit(run_worker(settings, record))


@click.command(
    cls=Command,
    examples=("qserve autoscaler",),
)
@click.pass_context
def autoscaler(context: click.Context) -> None:
    """Decide which worker runs which replicas.

    Start two or three: one leads, the others take over when it dies.
    """
    from qserve.controller.door import run_autoscaler

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
