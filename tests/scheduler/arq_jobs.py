"""An arq worker of somebody who had arq before: its jobs call a deployment."""

from __future__ import annotations

import os
from typing import Any

from arq.connections import RedisSettings

from qserve.handle import DeploymentHandle

ECHO: DeploymentHandle[Any] = DeploymentHandle("Echo", "app")


async def ask(_context: dict[str, Any], value: int) -> list[Any]:
    """A job like any other: it waits for one call, and leaves another one for later."""
    ECHO.options(delay_s=0.3).later.remote(value)
    return ["answered", await ECHO.double.remote(value)]


class WorkerSettings:
    """What `arq` reads."""

    functions = (ask,)
    poll_delay = 0.05
    redis_settings = RedisSettings.from_dsn(os.environ.get("ARQ_URL", "redis://127.0.0.1:6379"))
