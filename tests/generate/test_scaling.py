"""What scales workers: KEDA counts the streams that the calls really stand in."""

from __future__ import annotations

import pytest
import yaml

import qserve as serve
from qserve.errors import UsageError
from qserve.generate import Scaling, Stack, kubernetes, pools_of
from tests.generate.variants import PASSWORD
from tests.support.cluster import eventually


def scalers(stack, scaling):
    """The objects of scaling.yaml by kind."""
    documents = yaml.safe_load_all(kubernetes(stack, scaling)["scaling.yaml"])
    return {document["kind"]: document["spec"] for document in documents}


@serve.deployment(max_ongoing_requests=2)
class Slow:
    def __call__(self, path):
        from pathlib import Path

        eventually(Path(path).exists, within_s=30)


@pytest.mark.slow
def test_the_streams_that_keda_reads_are_as_long_as_calls_wait_and_run(cluster, server, tmp_path):
    """A trigger on another key would read zero for ever, and nobody would notice before the first rush."""
    handle = serve.run(Slow.bind(), name="shop")
    stack = Stack(namespace=cluster.settings.namespace)
    triggers = scalers(stack, Scaling("keda", {("shop", "Slow"): 3}))["ScaledObject"]["triggers"]
    streams = [trigger["metadata"]["stream"] for trigger in triggers]

    responses = [handle.remote(str(tmp_path / "go")) for _ in range(5)]
    eventually(lambda: sum(server.xlen(stream) for stream in streams) == 5, what="two run, three wait")
    (tmp_path / "go").touch()
    for response in responses:
        response.result(timeout_s=30)
    eventually(lambda: sum(server.xlen(stream) for stream in streams) == 0, what="each finished call has left")


def test_keda_is_told_lengths_and_no_group():
    """With a consumerGroup KEDA counts pending entries instead: waiting calls would scale nothing."""
    for trigger in scalers(Stack(), Scaling("keda", {("a", "B"): 7}))["ScaledObject"]["triggers"]:
        assert trigger["type"] == "redis-streams"
        assert trigger["metadata"]["streamLength"] == "7"
        assert "consumerGroup" not in trigger["metadata"]
        assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA refuses numbers"


def test_keda_finds_the_server_that_the_workers_use():
    """A scaler that asks another server sees an empty queue."""
    url = f"rediss://app:{PASSWORD}@redis.internal:6380/2"
    found = scalers(Stack(redis_url=url), Scaling("keda", {("a", "B"): 7}))
    trigger = found["ScaledObject"]["triggers"][0]
    assert trigger["metadata"] | {"stream": ""} == {
        "address": "redis.internal:6380",
        "databaseIndex": "2",
        "username": "app",
        "enableTLS": "true",
        "stream": "",
        "streamLength": "7",
    }
    assert trigger["authenticationRef"] == {"name": "qserve-redis"}
    (reference,) = found["TriggerAuthentication"]["secretTargetRef"]
    assert reference == {"parameter": "password", "name": "qserve", "key": "redis-password"}


def test_keda_asks_sentinels_for_the_server():
    """The address of the server itself changes with each failover."""
    stack = Stack(redis_url="redis+sentinel://s1:26379,s2:26380/mymaster/1")
    trigger = scalers(stack, Scaling("keda", {("a", "B"): 7}))["ScaledObject"]["triggers"][0]
    assert trigger["type"] == "redis-sentinel-streams"
    assert trigger["metadata"]["addresses"] == "s1:26379,s2:26380"
    assert trigger["metadata"]["sentinelMaster"] == "mymaster"


def test_a_scaler_keeps_within_its_numbers_and_goes_down_slowly():
    """A worker that leaves moves its replicas; the least is what --workers says."""
    found = scalers(Stack(workers=3), Scaling("keda", {("a", "B"): 7}, max_workers=9))["ScaledObject"]
    assert (found["minReplicaCount"], found["maxReplicaCount"]) == (3, 9)
    assert "fallback" not in found, "while Redis is away the number stays"
    behavior = found["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 300


def test_only_pools_that_host_a_counted_deployment_are_scaled():
    """More workers that may not host it would only cost."""
    stack = Stack(pools=pools_of([["a.B"], ["c"]]))
    documents = list(yaml.safe_load_all(kubernetes(stack, Scaling("keda", {("a", "B"): 7}))["scaling.yaml"]))
    assert [document["metadata"]["name"] for document in documents] == ["qserve-worker-a-b"]


def test_an_hpa_goes_by_the_cpu_that_pods_request():
    """And says what it needs, and what it cannot see."""
    text = kubernetes(Stack(), Scaling("hpa", max_workers=20))["scaling.yaml"]
    assert "metrics-server" in text
    found = yaml.safe_load(text)["spec"]
    assert (found["minReplicas"], found["maxReplicas"]) == (2, 20)
    assert found["metrics"][0]["resource"]["name"] == "cpu"


@pytest.mark.parametrize(
    ("stack", "scaling", "words"),
    [
        (Stack(), Scaling("keda"), "--scale-on"),
        (Stack(workers=5), Scaling("hpa", max_workers=4), "below --workers 5"),
        (Stack(pools=pools_of([["c"]])), Scaling("keda", {("a", "B"): 7}), "no worker hosts it"),
        (Stack(app="s:a", replicas={"B": 1}, name="s"), Scaling("keda", {("a", "B"): 7}), "no worker hosts it"),
    ],
)
def test_a_scaler_that_could_never_work_is_refused(stack, scaling, words):
    """Kubernetes would take it, and nothing would ever scale."""
    with pytest.raises(UsageError, match=words):
        kubernetes(stack, scaling)
