"""What a running call may ask about itself, and what a replica may ask about itself."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from qserve.errors import QserveError


@dataclass(frozen=True, slots=True)
class CallContext:
    """The call that runs now.

    request_id  of the outermost call that led here; the calls made inside inherit it
    call_id     of this call, as `response.request_id` names it
    attempt     1 for the first run; higher after a replica died
    """

    request_id: str
    call_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class ReplicaContext:
    """The replica that this process is. Names are Ray Serve's."""

    app_name: str
    deployment: str
    replica_tag: str
    code_version: str
    servable_object: Any

    @property
    def replica_id(self) -> str:
        """The replica's id, unique over time."""
        return self.replica_tag


current_call: ContextVar[CallContext | None] = ContextVar("qserve_current_call", default=None)
_replica: ReplicaContext | None = None


def set_replica_context(context: ReplicaContext) -> None:
    """Called once by the replica process, when the user's class has been built."""
    global _replica  # noqa: PLW0603 (a process is one replica)
    _replica = context


def in_replica() -> bool:
    """Whether this process is a replica."""
    return _replica is not None


def get_replica_context() -> ReplicaContext:
    """The replica that runs this code. Raises QserveError outside of one."""
    if _replica is None:
        raise QserveError("get_replica_context() may only be called from within a replica.")
    return _replica
