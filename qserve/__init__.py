"""qserve: Ray Serve's handle API on nothing but Redis. `import qserve as serve`."""

from qserve.api import delete, get_app_handle, get_deployment_handle, run, shutdown, status
from qserve.client.portal import get_response
from qserve.client.waiting import as_completed, get, wait
from qserve.config import VERSION
from qserve.context import get_replica_context
from qserve.deployment import Application, Deployment, deployment

__version__ = VERSION

__all__ = [  # noqa: RUF022 (in the order in which a user meets them)
    # declare
    "Application",
    "Deployment",
    "deployment",
    # deploy
    "delete",
    "run",
    "shutdown",
    "status",
    # call
    "get_app_handle",
    "get_deployment_handle",
    "get_response",
    # wait, in threads
    "as_completed",
    "get",
    "wait",
    # inside a replica
    "get_replica_context",
]
