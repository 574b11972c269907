"""Records of desired and observed state, as they are kept in Redis and shown by `serve.status()`.

Pure data: frozen, JSON at the border. Who writes what: `api` writes AppSpec, `node` writes NodeRecord and
ReplicaRecord, the leading `controller` writes Assignment and the statuses.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qserve.config import DeploymentConfig


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
    REPLICA_STARTUP_FAILED = "REPLICA_STARTUP_FAILED"
    HEALTH_CHECK_FAILED = "HEALTH_CHECK_FAILED"
    DELETING = "DELETING"


class ReplicaState(StrEnum):
    """Where a replica is in its life. FAILED is a start that did not succeed; its record is kept for the message."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    FAILED = "FAILED"
    DIED = "DIED"


class CallState(StrEnum):
    """What became of a call, as `DeploymentResponse.status()` tells it."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    DEAD = "DEAD"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    UNKNOWN = "UNKNOWN"


class Record(BaseModel):
    """The base of all records: frozen, and tolerant of fields that a newer version added."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_json(self) -> bytes:
        """The bytes kept in Redis."""
        return self.model_dump_json().encode()


class DeploymentSpec(Record):
    """One deployment as its application wants it. `version` is a hash of code, arguments and options."""

    app: str
    name: str
    version: str
    config: DeploymentConfig
    python: str
    replicas: int = Field(ge=0)

    @field_validator("config", mode="before")
    @classmethod
    def _as_recorded(cls, config: Any) -> DeploymentConfig:
        return config if isinstance(config, DeploymentConfig) else DeploymentConfig.from_record(config)


class AppSpec(Record):
    """One application as its user wants it."""

    name: str
    ingress: str
    deployments: tuple[DeploymentSpec, ...]
    deployed_at_s: float
    deploy_id: str
    route_prefix: str | None = "/"

    def deployment(self, name: str) -> DeploymentSpec | None:
        """The deployment of that name, if the application has it."""
        return next((spec for spec in self.deployments if spec.name == name), None)


class NodeRecord(Record):
    """One `qserve worker`. `draining` nodes take no new replicas."""

    node_id: str
    host: str
    pid: int
    python: str
    qserve: str
    protocol: int
    resources: dict[str, float]
    labels: dict[str, str] = Field(default_factory=dict)
    deployments: tuple[str, ...] = ()
    draining: bool = False

    def accepts(self, app: str, deployment: str) -> bool:
        """Whether this node's `--deployments` list admits the deployment; an empty list admits all."""
        return not self.deployments or bool({app, deployment, f"{app}.{deployment}"} & set(self.deployments))


class Assignment(Record):
    """One replica that a node shall run, as the leader decided."""

    replica_id: str
    node_id: str
    app: str
    deployment: str
    version: str


class ReplicaRecord(Record):
    """One replica as its node sees it."""

    replica_id: str
    node_id: str
    app: str
    deployment: str
    version: str
    state: ReplicaState
    pid: int = 0
    message: str = ""


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
