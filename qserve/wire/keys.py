"""The names of everything in Redis. A deployment's keys share a hash tag, so that a script stays in one slot."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count

from qserve.config import PROTOCOL_VERSION

ROOT = f"qserve:{PROTOCOL_VERSION}"
GROUP = "replicas"
CALL_ID_BYTES = 16
# A request id may come from a browser: these would let it name other keys than a call's.
_NOT_IN_NAMES = frozenset("#:{}~ \n\t/")


@dataclass(frozen=True, eq=False)
class DeploymentKeys:
    """Keys of one deployment's data path. Compared by identity: `deployment_keys` makes one per deployment."""

    namespace: str
    app: str
    deployment: str

    @cached_property
    def scope(self) -> str:
        """What binds an envelope to this deployment; also the hash tag."""
        return f"{self.namespace}:{self.app}:{self.deployment}"

    @cached_property
    def _base(self) -> str:
        return f"{ROOT}:{{{self.scope}}}"

    @cached_property
    def front(self) -> str:
        """Stream of calls handed back; served before `calls`."""
        return f"{self._base}:front"

    @cached_property
    def calls(self) -> str:
        """Stream of waiting and running calls."""
        return f"{self._base}:calls"

    @cached_property
    def dead(self) -> str:
        """Stream of dead letters, capped."""
        return f"{self._base}:dead"

    @cached_property
    def asleep(self) -> str:
        """There while the deployment has no replicas and no streams: the next call makes the streams and tells so."""
        return f"{self._base}:asleep"

    @cached_property
    def delayed(self) -> str:
        """Sorted set: ids of calls that are not due yet, by the server's milliseconds at which they are."""
        return f"{self._base}:delayed"

    @cached_property
    def envelopes(self) -> str:
        """Hash: call id -> envelope, of the calls in `delayed`."""
        return f"{self._base}:envelopes"

    @cached_property
    def quarantine(self) -> str:
        """Stream of entries that could not be trusted, as raw bytes, capped."""
        return f"{self._base}:quarantine"

    @cached_property
    def _record_prefix(self) -> str:
        return f"{self._base}:call:"

    def record(self, call_id: bytes) -> str:
        """The call's record: its place in the queue, then its reply."""
        return self._record_prefix + call_id.hex()

    def lease(self, replica_id: str) -> str:
        """The replica's right to hold calls."""
        return f"{self._base}:lease:{replica_id}"

    @cached_property
    def lease_prefix(self) -> str:
        """What a lease's key begins with; the replica id follows."""
        return f"{self._base}:lease:"


@lru_cache(maxsize=4096)
def deployment_keys(namespace: str, app: str, deployment: str) -> DeploymentKeys:
    """The one DeploymentKeys of a deployment: its names are computed once per process."""
    return DeploymentKeys(namespace, app, deployment)


@dataclass(frozen=True)
class ClusterKeys:
    """Keys of a namespace's control plane."""

    namespace: str

    @cached_property
    def _base(self) -> str:
        return f"{ROOT}:{{{self.namespace}}}"

    @cached_property
    def apps(self) -> str:
        """Hash: application -> sealed AppSpec."""
        return f"{self._base}:apps"

    @cached_property
    def statuses(self) -> str:
        """Hash: application -> ApplicationStatusInfo."""
        return f"{self._base}:statuses"

    @cached_property
    def nodes(self) -> str:
        """Hash: node -> NodeRecord."""
        return f"{self._base}:nodes"

    @cached_property
    def replicas(self) -> str:
        """Hash: replica -> ReplicaRecord."""
        return f"{self._base}:replicas"

    @cached_property
    def seal(self) -> str:
        """A word that the leader has signed: by it others see whether they have the cluster's secret."""
        return f"{self._base}:seal"

    @cached_property
    def scaling(self) -> str:
        """Hash: application.deployment -> ScalingRecord."""
        return f"{self._base}:scaling"

    def decisions(self, app: str, deployment: str) -> str:
        """List of Decisions, newest first, capped."""
        return f"{self._base}:decisions:{app}.{deployment}"

    def history(self, app: str) -> str:
        """List of sealed AppSpecs, newest (the present one) first, capped."""
        return f"{self._base}:history:{app}"

    def logs(self, app: str, deployment: str) -> str:
        """Stream of lines that a deployment's replicas wrote, capped."""
        return f"{self._base}:logs:{app}.{deployment}"

    @cached_property
    def crons(self) -> str:
        """Hash: name -> sealed CronRecord."""
        return f"{self._base}:crons"

    @cached_property
    def scheduler(self) -> str:
        """Sorted set of arq's: jobs of recurring calls, by the milliseconds at which they are due."""
        return f"{self._base}:scheduler"

    @cached_property
    def leader(self) -> str:
        """The leading controller and its term, until it lapses."""
        return f"{self._base}:leader"

    @cached_property
    def term(self) -> str:
        """Counter of reigns."""
        return f"{self._base}:term"

    @cached_property
    def generation(self) -> str:
        """Counter that moves with every change of desired or observed state."""
        return f"{self._base}:generation"

    @cached_property
    def events(self) -> str:
        """Channel: hints that state has changed."""
        return f"{self._base}:events"

    def scope(self, *names: str) -> str:
        """What binds a control envelope to what it stands for: ("app", name), ("code", version), ("cron", name),
        ("scheduler",) or ("seal",).

        No part may hold a colon; namespaces, names and versions hold none.
        """
        return ":".join((self.namespace, *names))

    def code(self, version: str) -> str:
        """Sealed pickle of a deployment's class and arguments."""
        return f"{self._base}:code:{version}"

    def assignments(self, node_id: str) -> str:
        """Hash: replica -> Assignment, for one node."""
        return f"{self._base}:assigned:{node_id}"

    def node_lease(self, node_id: str) -> str:
        """The node's sign of life."""
        return f"{self._base}:node-lease:{node_id}"


def inbox(client_id: str) -> str:
    """Channel on which a client process hears of its replies."""
    return f"{ROOT}:inbox:{client_id}"


def request_id(app: str, deployment: str, call_id: bytes) -> str:
    """The id given to users. It names the deployment, so that any process finds the record."""
    return f"{app}.{deployment}.{call_id.hex()}"


def parse_request_id(text: str) -> tuple[str, str, bytes]:
    """Application, deployment and call id of a request id. Raises ValueError for anything else."""
    try:
        rest, call_hex = text.rsplit(".", 1)
        app, deployment = rest.split(".", 1)
        call_id = bytes.fromhex(call_hex)
    except (ValueError, AttributeError, TypeError):
        call_id, app, deployment = b"", "", ""
    if len(call_id) != CALL_ID_BYTES or not app or not deployment or set(text) & _NOT_IN_NAMES:
        raise ValueError(
            f"{text!r} is not a request id: it looks like 'default.Adder.0193…', from response.request_id."
        )
    return app, deployment, call_id


class CallIds:
    """Makes call ids: 48 bits of milliseconds, 48 random bits of this process, 32 bits of a counter."""

    def __init__(self) -> None:
        self._process = os.urandom(6)
        self._counter = count(int.from_bytes(os.urandom(2)))

    def next(self, now_ms: int) -> bytes:
        """A new id, ordered by `now_ms`. Thread-safe: the counter's step is one bytecode."""
        number = next(self._counter) & 0xFFFFFFFF
        return now_ms.to_bytes(6) + self._process + number.to_bytes(4)
