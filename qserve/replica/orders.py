"""What a worker wants of its replica beside the calls: to be checked, to take over another configuration, to leave."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from qserve.replica.control import Control, error_text
from qserve.replica.load import Servable
from qserve.replica.serve import Server
from qserve.spec import DeploymentSpec


class Orders:
    """Follows the worker's orders, and tells it what it must know. Until `started` only the drain can come."""

    def __init__(self, control: Control, servable: Servable, spec: DeploymentSpec) -> None:
        self._server: Server | None = None
        self._control = control
        self._servable = servable
        self._spec = spec
        self._tasks: set[asyncio.Task[None]] = set()

    def started(self, server: Server) -> None:
        """The class is built and well: from now on this replica serves."""
        self._server = server  # first: the next order may come as soon as the worker hears of it
        self._control.tell(state="RUNNING")

    async def failed(self) -> None:
        """The start has ended with the error that is being handled."""
        self._control.tell(state="FAILED", message=error_text())
        await self._control.flush()

    def retire(self, why: str) -> None:
        """This replica wants to be replaced."""
        self._control.tell(retire=why)

    async def follow(self) -> float | None:
        """Follow them until the last. Returns how many seconds it leaves us; None when the worker is gone."""
        while (message := await self._control.read()) is not None:
            if "drain" in message:
                return float(message["drain"])
            if "check" in message:
                self._check(message["check"])
            elif "reconfigure" in message and self._server is not None:
                spec = DeploymentSpec.model_validate(message["reconfigure"])
                self._spawn(self._reconfigure(spec, self._server))
        return None

    async def worker_is_gone(self) -> None:
        """Wait for that, after the last order."""
        while await self._control.read() is not None:
            continue

    def _check(self, number: int) -> None:
        if self._servable.has_check:
            self._spawn(self._ask(number))
        else:  # that we answer is all that there is to know
            self._control.tell(checked=number, message="")

    async def _ask(self, number: int) -> None:
        message = ""
        try:
            await self._servable.check_health(self._spec.config.health_check_timeout_s)
        except BaseException:  # noqa: BLE001 (user code may raise anything, and each of it is a failure)
            message = error_text()
        self._control.tell(checked=number, message=message)

    async def _reconfigure(self, spec: DeploymentSpec, server: Server) -> None:
        message = ""
        try:
            server.configure(spec)
            if spec.config.user_config != self._spec.config.user_config:
                await self._servable.reconfigure(spec.config.user_config)
            self._spec = spec
        except BaseException:  # noqa: BLE001 (user code may raise anything, and the worker must hear of it)
            message = error_text()
        self._control.tell(configured=spec.config_version, message=message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
