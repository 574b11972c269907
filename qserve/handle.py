"""The module that `from ray.serve.handle import ...` becomes."""

from qserve.client.handle import DeploymentHandle
from qserve.client.response import DeploymentResponse

__all__ = ["DeploymentHandle", "DeploymentResponse"]
