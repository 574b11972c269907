"""The status: exact, and cheap enough to be asked by every dashboard and probe."""

from __future__ import annotations

import time

import pytest

import qserve as serve
from qserve.client import portal
from qserve.config import DeploymentConfig
from qserve.errors import UsageError
from qserve.spec import (
    ApplicationStatus,
    ApplicationStatusInfo,
    AppSpec,
    DeploymentSpec,
    DeploymentStatus,
    DeploymentStatusInfo,
    NodeRecord,
)
from qserve.store.history import Read, Wish
from qserve.store.state import Change, ClusterState
from tests.deploying.clusters import on_cluster

APPS, DEPLOYMENTS_EACH = 10, 10
NODE = NodeRecord(node_id="n1", host="h", pid=1, python="3.11", qserve="0", protocol=1, resources={"num_cpus": 2.0})


def spec(app: str) -> AppSpec:
    """An application of ten deployments."""
    config = DeploymentConfig(user_config={"weights": "s3://bucket/model"})
    deployments = tuple(
        DeploymentSpec(app=app, name=f"Model{n}", version=f"v{n}", config=config, python="3.11", replicas=1)
        for n in range(DEPLOYMENTS_EACH)
    )
    return AppSpec(name=app, ingress="Model0", deployments=deployments, deployed_at_s=1.0, deploy_id="d1")


def info(app: AppSpec) -> ApplicationStatusInfo:
    """Its status when all of it runs."""
    told = {
        d.name: DeploymentStatusInfo(status=DeploymentStatus.HEALTHY, replica_states={"RUNNING": 1}, replicas=1)
        for d in app.deployments
    }
    return ApplicationStatusInfo(status=ApplicationStatus.RUNNING, deploy_id=app.deploy_id, deployments=told)


@pytest.fixture
def many(settings):
    """A hundred deployments that run, and a worker, as a leader shows them."""
    apps = [spec(f"app{n}") for n in range(APPS)]

    async def write(state: ClusterState) -> None:
        await state.want({app.name: Wish(Read(), app) for app in apps}, {})
        await state.write([Change(state.keys.statuses, app.name, info(app).to_json()) for app in apps], "test")
        await state.announce(NODE)

    on_cluster(write)


@pytest.mark.slow
def test_the_status_of_a_hundred_deployments_takes_less_than_ten_milliseconds(many):
    """Two round trips, however many there are: one for each would be a tenth of a second on a network."""
    serve.status()
    took_s = []
    for _ in range(30):
        began = time.perf_counter()
        found = serve.status()
        took_s.append(time.perf_counter() - began)

    assert sum(len(app.deployments) for app in found.applications.values()) == APPS * DEPLOYMENTS_EACH
    assert min(took_s) < 0.010, f"the best of 30 took {min(took_s) * 1000:.1f} ms"


def test_waiting_calls_are_counted_where_they_wait(many):
    """Each deployment has a queue of its own."""

    async def put(state: ClusterState) -> None:
        key = f"qserve:1:{{{state.keys.namespace}:app3:Model7}}:calls"
        await state.link.call("XADD", key, "*", "c", "a call")

    on_cluster(put)
    waiting = {
        f"{app}.{name}": told.waiting
        for app, info in serve.status().applications.items()
        for name, told in info.deployments.items()
        if told.waiting
    }
    assert waiting == {"app3.Model7": 1}


def test_an_application_that_no_leader_has_taken_up_is_not_started(settings):
    """It is not lost: there is just no autoscaler."""

    async def write(state: ClusterState) -> None:
        await state.deploy(spec("new"), {})

    on_cluster(write)
    assert serve.status().applications["new"].status is ApplicationStatus.NOT_STARTED


def test_a_node_without_its_lease_is_not_shown(many, server):
    """What is dead hosts nothing."""
    namespace = portal.settings().namespace
    assert [node.node_id for node in serve.status().nodes] == ["n1"]
    server.delete(f"qserve:1:{{{namespace}}}:node-lease:n1")
    assert serve.status().nodes == ()


def test_an_application_that_workers_host_by_themselves_is_not_edited_from_elsewhere(settings):
    """Each of its workers runs what it was started with: a change that nobody carries out must not look like one."""

    async def write(state: ClusterState) -> None:
        await state.deploy(spec("alone").model_copy(update={"fixed": True}), {})

    on_cluster(write)
    with pytest.raises(UsageError, match="host application 'alone' by themselves"):
        serve.restart("alone")
