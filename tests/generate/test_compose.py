"""Compose files. That the defaults run stands in tests/acceptance/test_compose_topology.py."""

from __future__ import annotations

import pytest
import yaml

from qserve.errors import SettingsError, UsageError
from qserve.generate import Stack, compose, pools_of


def services(stack):
    """The services of the file by name."""
    return yaml.safe_load(compose(stack)["docker-compose.yml"])["services"]


def test_a_server_elsewhere_takes_valkeys_place():
    """A second, empty server beside the real one would be used by nobody and found by everybody."""
    found = services(Stack(redis_url="redis://redis.internal:6379/1", namespace="ml"))
    assert "valkey" not in found
    for service in found.values():
        assert "depends_on" not in service
        assert service["environment"]["QSERVE_REDIS_URL"] == "redis://redis.internal:6379/1"
        assert service["environment"]["QSERVE_NAMESPACE"] == "ml"


@pytest.mark.parametrize("url", ["redis://localhost:6379/0", "unix:///run/valkey.sock"])
def test_a_server_of_this_host_is_refused(url):
    """Each container has its own localhost: the file would wait for ever."""
    with pytest.raises(UsageError, match="its own localhost"):
        compose(Stack(redis_url=url))


def test_a_wrong_url_is_found_now():
    """Not when the first container fails at night."""
    with pytest.raises(SettingsError):
        Stack(redis_url="http://host")


def test_dollars_reach_the_process_as_they_are():
    """Compose would put a variable of its own into the URL."""
    url = services(Stack(redis_url="redis://host:6379/0?username=$app"))["worker"]["environment"]["QSERVE_REDIS_URL"]
    assert url == "redis://host:6379/0?username=$$app"


def test_resources_are_limited_and_offered_alike():
    """A worker that offers more than it may use is overbooked by the autoscaler."""
    worker = services(Stack(gpus=2, cpus=1.5, memory_mib=1536))["worker"]
    assert worker["deploy"]["resources"]["limits"] == {"cpus": "1.5", "memory": "1536m"}
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["count"], device["capabilities"]) == (2, ["gpu"])
    assert worker["command"][2:6] == ["--num-cpus", "1.5", "--num-gpus", "2"]


def test_each_list_of_deployments_has_workers_of_its_own():
    """Models that need a GPU stand beside models that need none."""
    found = services(Stack(pools=pools_of([["chat.Embedder"], ["images", "audio"]]), workers=3))
    assert found["worker-chat-embedder"]["command"][2:4] == ["--deployments", "chat.Embedder"]
    assert found["worker-images-audio"]["command"][2:4] == ["--deployments", "images,audio"]
    assert {found[name]["deploy"]["replicas"] for name in found if name.startswith("worker")} == {3}


def test_pools_that_would_have_one_name_have_two():
    """The second would replace the first without a word."""
    names = [pool.name for pool in pools_of([["a.B"], ["a-b"], ["A", "b"]])]
    assert len(set(names)) == 3


def test_workers_with_replicas_of_their_own_need_no_autoscaler():
    """It would decide about deployments that are not its own."""
    found = services(Stack(app="shop:app", replicas={"Search": 2}))
    assert "autoscaler" not in found
    assert found["worker"]["command"][:5] == ["qserve", "worker", "shop:app", "--replicas", "Search=2"]


@pytest.mark.parametrize(
    "wrong",
    [{"app": "shop:app"}, {"replicas": {"A": 1}}, {"app": "s:a", "replicas": {"A": 1}, "pools": pools_of([["a"]])}],
    ids=["no replicas", "no application", "and lists"],
)
def test_half_of_a_fixed_worker_is_refused(wrong):
    """A worker without its application, or with two answers to what it hosts."""
    with pytest.raises(UsageError):
        Stack(**wrong)
