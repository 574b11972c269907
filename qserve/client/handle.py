"""`DeploymentHandle`: names a deployment and a method; `.remote(...)` makes a call."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

from qserve.client.core import Sending
from qserve.client.delayed import due
from qserve.client.portal import current_core
from qserve.client.response import DeploymentResponse
from qserve.context import current_call
from qserve.store.delayed import Due
from qserve.wire.keys import deployment_keys
from qserve.wire.messages import Serializer

T = TypeVar("T")
_SERIALIZERS = {"pickle": Serializer.PICKLE, "cloudpickle": Serializer.PICKLE, "json": Serializer.JSON}


class DeploymentHandle(Generic[T]):
    """Calls a deployment of any application, from any process. Light, thread-safe, picklable; connects when first used.

    `handle.remote(x)` calls the instance, `handle.method.remote(x)` one of its methods.
    """

    __slots__ = ("_method", "_sending", "_serializer", "app_name", "deployment_name")

    def __init__(
        self,
        deployment_name: str,
        app_name: str = "default",
        *,
        method_name: str = "__call__",
        serializer: str = "pickle",
        max_queued_requests: int = -1,
        due: Due | None = None,
    ) -> None:
        self.deployment_name = deployment_name
        self.app_name = app_name
        self._method = method_name
        self._serializer = serializer
        self._sending = Sending(_SERIALIZERS[serializer], max_queued_requests, due)

    @property
    def deployment_id(self) -> str:
        """Application and deployment."""
        return f"{self.app_name}.{self.deployment_name}"

    def options(
        self,
        *,
        method_name: str | None = None,
        request_serialization: str | None = None,
        delay_s: float | None = None,
        at: datetime | float | None = None,
    ) -> DeploymentHandle[T]:
        """A new handle with these options changed.

        method_name            which method `.remote()` calls
        request_serialization  "pickle", or "json" for plain data that programs in other languages can read
        delay_s                how long each call waits before it may run, in seconds, up to a year
        at                     when each call may run: a datetime with its timezone, or seconds of the epoch. A moment
                               that has passed is now
        Raises ValueError for another serialization; UsageError for a delay that is none, or for both.
        """
        serializer = self._serializer if request_serialization is None else request_serialization
        if serializer not in _SERIALIZERS:
            raise ValueError(f"request_serialization={serializer!r}: it is one of {sorted(_SERIALIZERS)}.")
        keeps_time = delay_s is None and at is None
        return DeploymentHandle(
            self.deployment_name,
            self.app_name,
            method_name=method_name or self._method,
            serializer=serializer,
            max_queued_requests=self._sending.limit,
            due=self._sending.due if keeps_time else due(delay_s, at, time.time()),
        )

    def remote(self, *args: Any, **kwargs: Any) -> DeploymentResponse[Any]:
        """Make the call; returns at once. It runs even if nobody fetches the response.

        Arguments may hold responses of other calls, anywhere: the callee gets their values.
        Raises SerializationError (a TypeError) that names the argument at fault, and PayloadTooLarge. All other errors
        appear when the response is fetched.
        """
        parent = current_call.get()
        core = current_core()
        sending = self._sending
        if sending.due is not None and sending.due.is_past(time.time() * 1000):
            sending = replace(sending, due=None)
        return core.call(
            deployment_keys(core.settings.namespace, self.app_name, self.deployment_name),
            self._method,
            args,
            kwargs,
            sending,
            parent_request=None if parent is None else parent.request_id,
        )

    def __getattr__(self, name: str) -> DeploymentHandle[T]:
        if name.startswith("__") and name.endswith("__"):  # asked by copy, pickle, inspect: not a remote method
            raise AttributeError(name)
        return self.options(method_name=name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeploymentHandle):
            return NotImplemented
        return self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self.app_name, self.deployment_name, self._method))

    def __reduce__(self) -> tuple[Any, ...]:
        sending = self._sending
        names = (self.deployment_name, self.app_name, self._method, self._serializer)
        return (_rebuild, (*names, sending.limit, sending.due))

    def __repr__(self) -> str:
        return f"DeploymentHandle(deployment={self.deployment_name!r})"


class Parts(NamedTuple):
    """What a handle is made of."""

    deployment: str
    app: str
    method: str
    serializer: Serializer
    limit: int
    due: Due | None


def parts_of(handle: DeploymentHandle[Any]) -> Parts:
    """What a handle is made of, for those who keep it as a record."""
    deployment, app, method, serializer, limit, when = handle.__reduce__()[1]
    return Parts(deployment, app, method, _SERIALIZERS[serializer], limit, when)


def _rebuild(
    deployment: str, app: str, method: str, serializer: str, limit: int, when: Due | None = None
) -> DeploymentHandle[Any]:
    return DeploymentHandle(
        deployment, app, method_name=method, serializer=serializer, max_queued_requests=limit, due=when
    )
