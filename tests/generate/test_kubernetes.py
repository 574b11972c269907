"""Manifests for Kubernetes: whole, in step with each other, and refusing what would run wrong."""

from __future__ import annotations

import re

import pytest
import yaml

from qserve.config import DeploymentConfig
from qserve.generate import Stack, grace_for, kubernetes, pools_of
from tests.generate.variants import SCALINGS, STACKS

CASES = [(stack, scaling) for stack in STACKS for scaling in SCALINGS]
VERSIONS = {
    "Service": "v1",
    "StatefulSet": "apps/v1",
    "Deployment": "apps/v1",
    "PodDisruptionBudget": "policy/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "ScaledObject": "keda.sh/v1alpha1",
    "TriggerAuthentication": "keda.sh/v1alpha1",
}
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def objects(stack, scaling=None):
    """All objects of all files, by kind and name."""
    files = kubernetes(stack, scaling)
    found = [document for text in files.values() for document in yaml.safe_load_all(text)]
    by_name = {(document["kind"], document["metadata"]["name"]): document for document in found}
    assert len(by_name) == len(found), "one object would replace another"
    return by_name


def workloads(found):
    """The pods' templates, by the workload's name."""
    return {name: body["spec"] for (kind, name), body in found.items() if kind in ("Deployment", "StatefulSet")}


@pytest.mark.parametrize(("stack", "scaling"), CASES)
def test_every_object_is_of_a_kind_and_name_that_kubernetes_takes(stack, scaling):
    """A refused object leaves half of a cluster behind."""
    for (kind, name), body in objects(STACKS[stack], SCALINGS[scaling]).items():
        assert body["apiVersion"] == VERSIONS[kind]
        assert DNS_LABEL.fullmatch(name)
        assert "namespace" not in body["metadata"], "it is where `kubectl apply --namespace` says"
        for label in body["metadata"]["labels"].values():
            assert DNS_LABEL.fullmatch(label)


@pytest.mark.parametrize(("stack", "scaling"), CASES)
def test_selectors_find_the_pods_they_mean_and_no_others(stack, scaling):
    """A budget or a service that selects nothing is accepted without a word, and does nothing."""
    found = objects(STACKS[stack], SCALINGS[scaling])
    pods = {name: spec["template"]["metadata"]["labels"] for name, spec in workloads(found).items()}
    for (kind, name), body in found.items():
        if kind not in ("Service", "Deployment", "StatefulSet", "PodDisruptionBudget"):
            continue
        selector = body["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        assert [pod for pod, labels in pods.items() if wanted.items() <= labels.items()] == [name]


@pytest.mark.parametrize(("stack", "scaling"), CASES)
def test_scalers_name_a_workload_that_leaves_the_number_to_them(stack, scaling):
    """With `replicas` in the manifest each `kubectl apply` would throw the scaled number away."""
    found = objects(STACKS[stack], SCALINGS[scaling])
    scaled = {
        body["spec"]["scaleTargetRef"]["name"]
        for (kind, _), body in found.items()
        if kind in ("ScaledObject", "HorizontalPodAutoscaler")
    }
    deployments = {name for kind, name in found if kind == "Deployment"}
    assert scaled <= deployments
    for name in deployments:
        assert ("replicas" in found["Deployment", name]["spec"]) is (name not in scaled)


@pytest.mark.parametrize("stack", STACKS)
def test_volumes_and_keys_are_there_under_their_names(stack):
    """A pod whose volume or Secret has another name never starts."""
    for name, spec in workloads(objects(STACKS[stack])).items():
        pod = spec["template"]["spec"]
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ())}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        if name == "qserve-valkey":
            continue
        environment = {entry["name"]: entry for entry in container["env"]}
        assert environment["QSERVE_SECRET_KEY_FILE"]["value"] == "/run/qserve/secret-key"
        assert environment["QSERVE_REDIS_URL"].get("value", "hidden")


@pytest.mark.parametrize("stack", STACKS)
def test_pods_may_do_no_more_than_they_need(stack):
    """User code runs in them: what the strictest policy of Kubernetes ("restricted") asks for is there."""
    for spec in workloads(objects(STACKS[stack])).values():
        pod = spec["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"]["cpu"]


@pytest.mark.parametrize("stack", STACKS)
def test_pods_are_given_time_to_drain(stack):
    """Kubernetes kills 30 s after TERM unless told otherwise."""
    for name, spec in workloads(objects(STACKS[stack])).items():
        if name != "qserve-valkey":
            assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == STACKS[stack].grace_s


def test_the_grace_is_longer_than_the_slowest_replica_may_take():
    """The worker hands back and removes its records after its last replica has left."""
    configs = [DeploymentConfig(graceful_shutdown_timeout_s=s) for s in (1, 120, 45)]
    assert grace_for(configs) == 130
    assert grace_for(()) == 30


def test_workers_and_autoscalers_are_probed_without_asking_redis():
    """A Redis that is away for a minute must not restart every pod."""
    found = workloads(objects(Stack()))
    for name in ("qserve-worker", "qserve-autoscaler"):
        (container,) = found[name]["template"]["spec"]["containers"]
        file = container["command"][container["command"].index("--heartbeat-file") + 1]
        assert file.startswith("/tmp/")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            command = container[probe]["exec"]["command"]
            assert command[:2] == ["sh", "-c"]
            assert file in command[2]
            assert "qserve status" not in command[2]


def test_old_workers_leave_after_new_ones_came_except_where_gpus_are_rare():
    """With GPUs a surge pod would wait for a device that the old one holds: the roll-out would never end."""
    without, with_gpus = (workloads(objects(Stack(gpus=gpus)))["qserve-worker"]["strategy"] for gpus in (0, 1))
    assert without["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert with_gpus["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_a_worker_offers_what_its_pod_requests():
    """In a pod without a CPU limit a worker sees all CPUs of its node."""
    for stack, cpus, gpus in ((Stack(), "2", 0), (Stack(cpus=8, gpus=2), "8", 2)):
        (container,) = workloads(objects(stack))["qserve-worker"]["template"]["spec"]["containers"]
        command, requests = container["command"], container["resources"]["requests"]
        assert command[command.index("--num-cpus") + 1] == requests["cpu"] == cpus
        assert requests.get("nvidia.com/gpu", 0) == container["resources"]["limits"].get("nvidia.com/gpu", 0) == gpus


def test_two_autoscalers_are_on_two_nodes():
    """A stand-by beside its leader dies with it."""
    spec = workloads(objects(Stack()))["qserve-autoscaler"]
    assert spec["replicas"] == 2
    affinity = spec["template"]["spec"]["affinity"]["podAntiAffinity"]
    (term,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["labelSelector"]["matchLabels"] == spec["selector"]["matchLabels"]


def test_the_server_keeps_every_call():
    """A cache's policy would drop calls; a limit of memory above maxmemory lets it rewrite its file."""
    found = objects(Stack())
    (container,) = workloads(found)["qserve-valkey"]["template"]["spec"]["containers"]
    command = " ".join(container["command"])
    for option in ("--appendonly yes", "--maxmemory-policy noeviction", "--maxmemory 1200mb", "--dir /data"):
        assert option in command
    assert container["resources"]["limits"]["memory"] == "2048Mi"
    assert ("Service", "qserve-valkey") in found


def test_each_pool_has_workers_and_a_budget_of_its_own():
    """Draining a node may not take all hosts of one model."""
    found = objects(Stack(pools=pools_of([["a"], ["b"]])))
    for name in ("qserve-worker-a", "qserve-worker-b"):
        assert ("Deployment", name) in found
        assert ("PodDisruptionBudget", name) in found


@pytest.mark.parametrize("stack", STACKS)
def test_the_head_makes_every_key_that_is_used(stack):
    """`kubectl create secret` stands there once: a key that it forgets is a pod that waits for ever."""
    files = kubernetes(STACKS[stack], SCALINGS["keda"])
    head = next(iter(files.values())).split("apiVersion")[0]
    used = set(re.findall(r"^[ -]+key: ([a-z-]+)$", "\n".join(files.values()), re.MULTILINE))
    assert used == set(re.findall(r"--from-file=([a-z-]+)=", head))
