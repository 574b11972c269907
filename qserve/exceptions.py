"""The module that `from ray.serve.exceptions import ...` becomes: the names of `qserve.errors`, and Ray's aliases."""

from qserve.errors import (
    BackPressureError,
    BrokerUnavailable,
    CallError,
    CallLost,
    DeploymentUnavailableError,
    QserveError,
    RayServeException,
    RefusedError,
    RemoteError,
    ReplicaDiedError,
    RequestCancelledError,
    TransportError,
    UsageError,
)

TaskError = RemoteError
ActorDiedError = ReplicaDiedError

__all__ = [
    "ActorDiedError",
    "BackPressureError",
    "BrokerUnavailable",
    "CallError",
    "CallLost",
    "DeploymentUnavailableError",
    "QserveError",
    "RayServeException",
    "RefusedError",
    "RemoteError",
    "ReplicaDiedError",
    "RequestCancelledError",
    "TaskError",
    "TransportError",
    "UsageError",
]
