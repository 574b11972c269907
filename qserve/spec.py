"""Records of desired and observed state, as they are kept in Redis and shown by `serve.status()`.

Pure data: frozen, JSON at the border. Who writes what: `api` writes AppSpec, `node` writes NodeRecord and
ReplicaRecord, the leading `controller` writes Assignment and the statuses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qserve.config import DeploymentConfig
from qserve.options import RECONFIGURING


class ApplicationStatus(StrEnum):
    """What an application as a whole is doing."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    RUNNING = "RUNNING"
    UNHEALTHY = "UNHEALTHY"
    DELETING = "DELETING"


class DeploymentStatus(StrEnum):
    """What one deployment is doing."""

    UPDATING = "UPDATING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    UPSCALING = "UPSCALING"
    DOWNSCALING = "DOWNSCALING"


class StatusTrigger(StrEnum):
    """Why a deployment has its status."""

    UNSPECIFIED = "UNSPECIFIED"
    CONFIG_UPDATE_STARTED = "CONFIG_UPDATE_STARTED"
    CONFIG_UPDATE_COMPLETED = "CONFIG_UPDATE_COMPLETED"
    UPSCALE_COMPLETED = "UPSCALE_COMPLETED"
    DOWNSCALE_COMPLETED = "DOWNSCALE_COMPLETED"
    AUTOSCALING = "AUTOSCALING"
    REPLICA_STARTUP_FAILED = "REPLICA_STARTUP_FAILED"
    HEALTH_CHECK_FAILED = "HEALTH_CHECK_FAILED"
    DEPLOYMENT_ACTOR_FAILED = "DEPLOYMENT_ACTOR_FAILED"
    INTERNAL_ERROR = "INTERNAL_ERROR"
    DELETING = "DELETING"


class ReplicaState(StrEnum):
    """Where a replica is in its life. Ray Serve's names, and two of our own for replicas that ended unasked.

    UPDATING  it runs `reconfigure()`, and serves meanwhile
    FAILED    its start did not succeed; the record is kept for the message
    DIED      it ended after it had run; the record says by what
    """

    STARTING = "STARTING"
    UPDATING = "UPDATING"
    RECOVERING = "RECOVERING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    PENDING_MIGRATION = "PENDING_MIGRATION"
    FAILED = "FAILED"
    DIED = "DIED"


class ExitCause(StrEnum):
    """What ended a replica that nobody had asked to end."""

    START = "START"
    EXIT_CODE = "EXIT_CODE"
    SIGNAL = "SIGNAL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    HEALTH_CHECK = "HEALTH_CHECK"
    REFUSED = "REFUSED"


class CallState(StrEnum):
    """What became of a call, as `DeploymentResponse.status()` tells it. SCHEDULED waits for its time."""

    SCHEDULED = "SCHEDULED"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    DEAD = "DEAD"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    UNKNOWN = "UNKNOWN"


# Of resources, by name. Anybody who reaches Redis may have written a record: infinity must not reach the leader's sums.
Amounts: TypeAlias = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class Record(BaseModel):
    """The base of all records: frozen, and tolerant of fields that a newer version added."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_json(self) -> bytes:
        """The bytes kept in Redis."""
        return self.model_dump_json().encode()


class DeploymentSpec(Record):
    """One deployment as its application wants it.

    version   a hash of code, arguments and the options that need a restart
    replicas  how many are wanted; of an autoscaled deployment, with how many it begins
    paused    its replicas take no calls: what is submitted waits
    env_vars  environment variables of its replicas, from the application's runtime_env
    """

    app: str
    name: str
    version: str
    config: DeploymentConfig
    python: str
    replicas: int = Field(ge=0)
    paused: bool = False
    env_vars: dict[str, str] = Field(default_factory=dict)

    @cached_property
    def config_version(self) -> str:
        """A hash of what running replicas are told by `reconfigure`; another one restarts nothing."""
        told = self.config.model_dump_json(include=set(RECONFIGURING)) + str(self.paused)
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed; what was computed of the old ones does not come along."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("config_version", None)
        return copied

    @field_validator("config", mode="before")
    @classmethod
    def _as_recorded(cls, config: Any) -> DeploymentConfig:
        return config if isinstance(config, DeploymentConfig) else DeploymentConfig.from_record(config)


class AppSpec(Record):
    """One application as its user wants it.

    source  where it came from, for people: an import path with its arguments, or empty
    fixed   workers host it by themselves (`qserve worker APP --replicas ...`): controllers leave it alone
    """

    name: str
    ingress: str
    deployments: tuple[DeploymentSpec, ...]
    deployed_at_s: float
    deploy_id: str
    route_prefix: str | None = "/"
    source: str = ""
    fixed: bool = False

    def deployment(self, name: str) -> DeploymentSpec | None:
        """The deployment of that name, if the application has it."""
        return next((spec for spec in self.deployments if spec.name == name), None)


class NodeRecord(Record):
    """One `qserve worker`. `draining` nodes take no new replicas.

    resources  what it offers, by name: num_cpus, num_gpus, memory (bytes), and custom ones
    """

    node_id: str
    host: str
    pid: int
    python: str
    qserve: str
    protocol: int
    resources: Amounts
    labels: dict[str, str] = Field(default_factory=dict)
    deployments: tuple[str, ...] = ()
    draining: bool = False

    def accepts(self, app: str, deployment: str) -> bool:
        """Whether this node's `--deployments` list admits the deployment; an empty list admits all."""
        return not self.deployments or bool({app, deployment, f"{app}.{deployment}"} & set(self.deployments))


class Assignment(Record):
    """One replica that a node shall run, as the leader decided.

    config_version  the DeploymentSpec.config_version that it shall have; another one than before is a reconfigure
    resources       what it takes of its node, by name
    """

    replica_id: str
    node_id: str
    app: str
    deployment: str
    version: str
    config_version: str = ""
    resources: Amounts = Field(default_factory=dict)


class ReplicaRecord(Assignment):
    """One replica as its node sees it.

    config_version  the one that it has now
    gpus            the devices that it sees, as in CUDA_VISIBLE_DEVICES
    retiring        why it is to be replaced once another one runs; empty: it is not
    cause           what ended it, when it ended unasked
    started_at_s    seconds of the epoch
    """

    state: ReplicaState
    pid: int = 0
    message: str = ""
    gpus: tuple[str, ...] = ()
    retiring: str = ""
    cause: ExitCause | None = None
    started_at_s: float = 0.0

    @property
    def serves(self) -> bool:
        """Whether it takes calls."""
        return self.state in (ReplicaState.RUNNING, ReplicaState.UPDATING)


class Decision(Record):
    """One change of a deployment's number of replicas, and why; the last 100 are kept.

    at_s    seconds of the epoch
    reason  in words, with the figures that led to it
    """

    at_s: float
    before: int
    after: int
    reason: str


class ScalingRecord(Record):
    """What the autoscaler remembers of a deployment, so that another leader goes on from here.

    target        how many replicas are wanted now
    deploy_id     the deploy that it belongs to
    policy_state  what the policy returned, delays included
    """

    target: int
    deploy_id: str = ""
    policy_state: dict[str, Any] = Field(default_factory=dict)
    last_scale_up_time: float | None = None
    last_scale_down_time: float | None = None


class DeploymentStatusInfo(Record):
    """A deployment's line in `serve.status()`.

    replicas          how many are wanted
    failures          replicas that ended unasked since all were last running
    started           whether a replica of this version has ever run
    waiting, running  calls in the queue
    """

    status: DeploymentStatus
    status_trigger: StatusTrigger = StatusTrigger.UNSPECIFIED
    replica_states: dict[str, int] = Field(default_factory=dict)
    message: str = ""
    version: str = ""
    replicas: int = 0
    failures: int = 0
    failed_at_s: float = 0.0
    started: bool = False
    waiting: int = 0
    running: int = 0


class ApplicationStatusInfo(Record):
    """An application's part of `serve.status()`."""

    status: ApplicationStatus
    message: str = ""
    last_deployed_time_s: float = 0.0
    deploy_id: str = ""
    deployments: dict[str, DeploymentStatusInfo] = Field(default_factory=dict)


class ServeStatus(Record):
    """What `serve.status()` returns."""

    applications: dict[str, ApplicationStatusInfo] = Field(default_factory=dict)
    proxies: dict[str, str] = Field(default_factory=dict)
    target_capacity: float | None = None
    nodes: tuple[NodeRecord, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return self.model_dump(mode="json")
