"""Records that the tests of the state write and read."""

from __future__ import annotations

from qserve.config import DeploymentConfig
from qserve.spec import AppSpec, Assignment, DeploymentSpec, NodeRecord, ReplicaRecord, ReplicaState

ECHO = DeploymentSpec(
    app="shop", name="Echo", version="v1", config=DeploymentConfig(max_queued_requests=7), python="3.11", replicas=2
)
SHOP = AppSpec(name="shop", ingress="Echo", deployments=(ECHO,), deployed_at_s=1.0, deploy_id="d1")
NODE = NodeRecord(node_id="n1", host="h", pid=1, python="3.11", qserve="0", protocol=1, resources={"CPU": 2.0})
HOSTED = Assignment(replica_id="r1", node_id="n1", app="shop", deployment="Echo", version="v1")
REPLICA = ReplicaRecord(**HOSTED.model_dump(), state=ReplicaState.RUNNING, pid=7)
