"""What is to run, whatever the supervisor: workers, autoscalers, a server; and the command lines of all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from qserve.config import HEARTBEAT_S, DeploymentConfig
from qserve.deploying.targets import DEFAULT_APP
from qserve.errors import UsageError
from qserve.store.connection import Endpoint, parse_url

VALKEY_IMAGE = "valkey/valkey:8"
# On disk once a second, and never evicting: what it holds are calls and replies, not a cache.
VALKEY = ("valkey-server", "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction")
# Where containers write their heartbeat file: each has a /tmp of its own.
HEARTBEAT_FILE = "/tmp/qserve.heartbeat"  # noqa: S108 (nobody else is in that container)
# Older than this: the event loop hangs. Many heartbeats, for a busy host is no dead one.
STALE_S = int(15 * HEARTBEAT_S)
# What is left after the last replica's own time: calls are handed back, records are removed.
GRACE_MARGIN_S = 10
DAEMONS = {
    "autoscaler": "decides which worker runs which replicas; one leads, the others take its place when it dies",
    "scheduler": "makes the calls that are due; each is made once, by one of them",
}
_SLUG = re.compile(r"[^a-z0-9]+")


def grace_for(configs: Iterable[DeploymentConfig]) -> int:
    """Seconds from TERM to KILL in which every replica can finish its calls; for the default options without any."""
    longest = max((config.graceful_shutdown_timeout_s for config in configs), default=None)
    default: float = DeploymentConfig.model_fields["graceful_shutdown_timeout_s"].default
    return int(default if longest is None else longest) + GRACE_MARGIN_S


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers that host the same deployments.

    deployments  what `--deployments` gets; empty hosts all
    """

    name: str = "worker"
    deployments: tuple[str, ...] = ()

    def admits(self, app: str, deployment: str) -> bool:
        """Whether these workers host it."""
        return not self.deployments or bool({app, deployment, f"{app}.{deployment}"} & set(self.deployments))


def pools_of(lists: Sequence[Sequence[str]]) -> tuple[Pool, ...]:
    """A pool for each `--deployments` list, named after it; one for all when there is no list."""
    if not lists:
        return (Pool(),)
    names: list[str] = []
    for deployments in lists:
        name = f"worker-{_SLUG.sub('-', '-'.join(deployments).lower()).strip('-')}"[:40].rstrip("-")
        names.append(name if name not in names else f"{name}-{len(names)}")
    return tuple(Pool(name, tuple(deployments)) for name, deployments in zip(names, lists, strict=True))


@dataclass(frozen=True)
class Stack:
    """A cluster as it should run.

    redis_url   None: a Valkey in the stack. A password in it is never written anywhere: see `hides_url`
    app         "module:name" of which each worker hosts `replicas` by itself, deployed as `name`: without an autoscaler
    cpus        what a worker may use and offers; None: all of its host's
    memory_mib  what a worker may use; None: no limit
    grace_s     seconds from TERM to KILL
    """

    workers: int = 2
    autoscalers: int = 2
    redis_url: str | None = None
    namespace: str = "default"
    image: str = "qserve"
    gpus: int = 0
    cpus: float | None = None
    memory_mib: int | None = None
    pools: tuple[Pool, ...] = (Pool(),)
    app: str | None = None
    name: str = DEFAULT_APP
    replicas: dict[str, int] = field(default_factory=dict)
    grace_s: int = field(default_factory=lambda: grace_for(()))
    schedulers: int = 0

    def __post_init__(self) -> None:
        if bool(self.app) is not bool(self.replicas):
            raise UsageError(
                "A worker that hosts an application by itself needs both: MODULE:APP and --replicas NAME=N."
            )
        if self.app and any(pool.deployments for pool in self.pools):
            raise UsageError("With --replicas each worker hosts just those deployments: leave --deployments out.")
        if self.redis_url is not None:
            parse_url(self.redis_url)  # raises SettingsError

    @property
    def is_fixed(self) -> bool:
        """Whether workers host a fixed number of replicas by themselves, and no autoscaler runs."""
        return self.app is not None

    @property
    def hides_url(self) -> bool:
        """Whether the URL holds a password: then it stands where secrets stand, and texts only point there."""
        return self.redis_url is not None and bool(self.endpoint.password)

    @cached_property
    def endpoint(self) -> Endpoint:
        """The server outside the stack."""
        assert self.redis_url is not None
        return parse_url(self.redis_url)

    def refuse_local(self) -> None:
        """Raise UsageError for a server that a container cannot reach."""
        if self.redis_url is not None and self.endpoint.is_local:
            raise UsageError(
                f"A container cannot reach {self.endpoint}: it is its own localhost. Name a host of the network, or "
                "leave --redis-url out for a Valkey in the stack."
            )

    def worker(self, pool: Pool, heartbeat_file: str | None, *, cpus: float | None = None) -> list[str]:
        """The command line of one worker.

        cpus  to offer where the stack says nothing; one that hosts a fixed number offers what that takes
        """
        cpus = self.cpus or (None if self.is_fixed else cpus)
        words = ["qserve", "worker"]
        if self.app is not None:
            words.append(self.app)
            words += [word for name, count in self.replicas.items() for word in ("--replicas", f"{name}={count}")]
            words += [] if self.name == DEFAULT_APP else ["--name", self.name]
        if cpus is not None:
            words += ["--num-cpus", f"{cpus:g}"]
        if self.gpus:
            words += ["--num-gpus", str(self.gpus)]
        if pool.deployments:
            words += ["--deployments", ",".join(pool.deployments)]
        return words + _heartbeat(heartbeat_file)

    @property
    def daemons(self) -> dict[str, int]:
        """How many there are of the processes that host nothing, by command; only those that run at all."""
        counts = {"autoscaler": 0 if self.is_fixed else self.autoscalers, "scheduler": self.schedulers}
        return {name: count for name, count in counts.items() if count}

    @staticmethod
    def daemon(name: str, heartbeat_file: str | None) -> list[str]:
        """The command line of one of them."""
        return ["qserve", name, *_heartbeat(heartbeat_file)]


def _heartbeat(path: str | None) -> list[str]:
    return [] if path is None else ["--heartbeat-file", path]


def is_ready() -> str:
    """A shell test: it has joined, and does not leave."""
    return f"grep -q ready {HEARTBEAT_FILE}"


def is_alive() -> str:
    """A shell test that starts no Python and asks no server: the event loop has turned lately."""
    return f"test $(( $(date +%s) - $(stat -c %Y {HEARTBEAT_FILE}) )) -lt {STALE_S}"
