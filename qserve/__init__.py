"""qserve: Ray Serve's handle API on nothing but Redis. `import qserve as serve`."""

from qserve.api import (
    RunTarget,
    delete,
    get_app_handle,
    get_deployment_handle,
    pause,
    restart,
    resume,
    rollback,
    run,
    run_many,
    scale,
    shutdown,
    shutdown_async,
    start,
    status,
)
from qserve.client.portal import get_response
from qserve.client.waiting import as_completed, get, wait
from qserve.config import VERSION
from qserve.context import get_replica_context
from qserve.deployment import Application, Deployment, deployment
from qserve.scheduling import Cron, cron, crons, uncron

__version__ = VERSION

__all__ = [  # noqa: RUF022 (in the order in which a user meets them)
    # declare
    "Application",
    "Deployment",
    "deployment",
    # deploy
    "RunTarget",
    "delete",
    "run",
    "run_many",
    "shutdown",
    "shutdown_async",
    "start",
    "status",
    # operate
    "pause",
    "restart",
    "resume",
    "rollback",
    "scale",
    # call
    "get_app_handle",
    "get_deployment_handle",
    "get_response",
    # wait, in threads
    "as_completed",
    "get",
    "wait",
    # call again and again
    "Cron",
    "cron",
    "crons",
    "uncron",
    # inside a replica
    "get_replica_context",
]
