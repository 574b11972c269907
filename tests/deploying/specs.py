"""Applications as they are wanted, for pure tests."""

from __future__ import annotations

from typing import Any

from qserve.config import DeploymentConfig
from qserve.spec import AppSpec, DeploymentSpec


def deployment(name: str = "Model", *, app: str = "shop", version: str = "aa", **changes: Any) -> DeploymentSpec:
    """A deployment; options of the decorator and fields of the spec alike."""
    fields = {key: changes.pop(key) for key in ("paused", "env_vars") if key in changes}
    config = DeploymentConfig(**changes)
    replicas = config.first_replicas
    return DeploymentSpec(
        app=app, name=name, version=version, config=config, python="3.11", replicas=replicas, **fields
    )


def application(*deployments: DeploymentSpec, deploy_id: str = "d1", **fields: Any) -> AppSpec:
    """An application of these deployments."""
    ingress = deployments[0].name if deployments else "Model"
    return AppSpec(
        name="shop", ingress=ingress, deployments=deployments, deployed_at_s=1.0, deploy_id=deploy_id, **fields
    )
