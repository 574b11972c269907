"""Numbers that the autoscaler sets, which replicas go, and applications that workers host by themselves."""

from collections import Counter

import pytest

from qserve.spec import DeploymentSpec, ReplicaState
from tests.controller.world import World, spec

KEY = ("app", "Echo")


def scaling(target: int, *nodes: str, replicas: int = 1) -> World:
    """A cluster in which an autoscaled deployment runs with `target` replicas."""
    world = World.of(*(nodes or ("n1", "n2")))
    world.targets[KEY] = target
    world.deploy(autoscaled(replicas))
    world.settle()
    return world


def autoscaled(replicas: int = 1) -> DeploymentSpec:
    """`Echo`, whose number follows its load."""
    config = {"min_replicas": 0, "max_replicas": 20}
    return spec(replicas=replicas, autoscaling_config=config)


def test_the_target_counts_not_what_was_deployed():
    """A deploy brings the number to begin with; from then on the load decides."""
    assert scaling(3).running() == {"v1": 3}


@pytest.mark.parametrize(
    ("before", "after", "status", "completed"),
    [(1, 3, "UPSCALING", "UPSCALE_COMPLETED"), (3, 1, "DOWNSCALING", "DOWNSCALE_COMPLETED")],
)
def test_autoscaling_is_shown_and_the_application_runs_on(before: int, after: int, status: str, completed: str):
    """Nobody deployed anything: alerts on DEPLOYING must not go off with each rush."""
    world = scaling(before)
    world.targets[KEY] = after
    world.turn()
    assert world.shown() == ("RUNNING", status, "AUTOSCALING")

    world.settle()
    assert world.running() == {"v1": after}
    assert world.shown() == ("RUNNING", "HEALTHY", completed)


def test_a_deployment_with_no_replicas_is_healthy():
    """Scaled to zero it costs nothing; nothing is wrong with it."""
    world = scaling(2)
    world.targets[KEY] = 0
    world.settle()

    assert (world.assignments, world.replicas) == ({}, {})
    assert world.shown() == ("RUNNING", "HEALTHY", "DOWNSCALE_COMPLETED")
    assert world.info().replica_states == {}


def test_a_first_deploy_may_begin_with_none():
    """It is there at once, and starts with its first call."""
    world = scaling(0, replicas=0)
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")

    world.targets[KEY] = 3
    world.settle()
    assert world.running() == {"v1": 3}


def test_new_code_of_a_deployment_at_zero_starts_nothing():
    """The next call meets it."""
    world = scaling(0, replicas=0)
    world.deploy(autoscaled(0).model_copy(update={"version": "v2"}))
    world.settle()

    assert world.assignments == {}
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_a_constructor_that_fails_from_zero_is_given_up():
    """Its callers must hear so, instead of waiting for a replica that never comes."""
    world = scaling(0, replicas=0)
    world.broken.add("v1")
    world.targets[KEY] = 2
    world.settle()

    assert world.shown() == ("DEPLOY_FAILED", "DEPLOY_FAILED", "REPLICA_STARTUP_FAILED")


def test_more_than_fits_is_said_while_the_rest_serves():
    """The autoscaler wants five, the hosts hold three: UPSCALING, and why it goes no further."""
    world = World.of("n1", resources={"num_cpus": 3.0})
    world.targets[KEY] = 1
    world.deploy(autoscaled())
    world.settle()
    world.targets[KEY] = 5
    world.settle()

    assert world.running() == {"v1": 3}
    assert world.shown() == ("RUNNING", "UPSCALING", "AUTOSCALING")
    assert "needs num_cpus=1; the most that is free is 0 on n1" in world.info().message


def test_a_deploy_while_it_scales_is_a_deploy():
    """UPDATING until the new version runs, whatever the load does meanwhile."""
    world = scaling(2)
    world.targets[KEY] = 4
    world.turn()
    world.deploy(autoscaled().model_copy(update={"version": "v2"}))
    world.turn()
    world.targets[KEY] = 3
    world.turn()

    assert world.shown() == ("DEPLOYING", "UPDATING", "CONFIG_UPDATE_STARTED")
    world.settle()
    assert world.running() == {"v2": 3}
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


# Which replicas go


def test_the_idlest_replicas_go():
    """What is idle leaves at once; what is busy would have to finish first."""
    world = scaling(3, "n1")
    idle, *busy = sorted(world.assignments)
    world.held = dict.fromkeys(busy, 4)
    world.targets[KEY] = 2
    world.turn()

    assert set(world.assignments) == set(busy)
    assert idle not in world.assignments


def test_what_stays_is_even():
    """An idle replica that is the only one of its node stays: else a busy one would have to move there next."""
    world = scaling(3)
    crowded = Counter(a.node_id for a in world.assignments.values()).most_common(1)[0][0]
    world.held = {a.replica_id: 4 for a in world.assignments.values() if a.node_id == crowded}
    world.targets[KEY] = 2
    world.turn()

    assert Counter(a.node_id for a in world.assignments.values()) == {"n1": 1, "n2": 1}


def test_the_node_with_the_fewest_replicas_is_emptied_first():
    """A host without replicas can be given back."""
    world = World.of("n1", "n2")
    world.join("n1", labels={"big": "yes"})
    world.deploy(spec("Other", replicas=2, app="other", ray_actor_options={"label_selector": {"big": "yes"}}))
    world.settle()
    world.deploy(spec(replicas=2))
    world.settle()
    world.deploy(spec(replicas=1))
    world.settle()

    assert [a.node_id for a in world.assigned()] == ["n1"]


def test_the_newest_replicas_go():
    """Old ones have warm caches."""
    world = scaling(1, "n1")
    oldest = set(world.assignments)
    for target in (2, 3):
        world.targets[KEY] = target
        world.settle()
    world.targets[KEY] = 1
    world.turn()

    assert set(world.assignments) == oldest


# Hosted by workers themselves


def test_an_application_that_workers_host_by_themselves_is_left_alone():
    """Its worker decides; a controller beside it would start a second set, or take the first one down."""
    world = World.of("n1", resources={"num_cpus": 2.0})
    world.deploy(spec(replicas=2), fixed=True)

    assert world.decide() == []
    world.deploy(spec("Mine", app="mine", replicas=2))
    world.settle()
    ours = dict(world.assignments)
    own = {"replica_id": "own", "app": "app", "deployment": "Echo", "version": "v9", "state": ReplicaState.DIED}
    world.replicas["own"] = next(iter(world.replicas.values())).model_copy(update=own)
    assert world.decide() == []
    assert world.statuses.keys() == {"mine"}
    assert world.assignments == ours


def test_what_workers_host_by_themselves_takes_room():
    """The same CPUs cannot be given away twice."""
    world = World.of("n1", resources={"num_cpus": 2.0})
    world.deploy(spec(replicas=1))
    world.settle()
    own = {"replica_id": "own", "app": "fixed", "deployment": "Fixed"}
    world.replicas["own"] = next(iter(world.replicas.values())).model_copy(update=own)
    world.assignments["own"] = next(iter(world.assignments.values())).model_copy(update=own)
    world.deploy(spec("Fixed", app="fixed", replicas=1), fixed=True)
    world.deploy(spec(replicas=2))
    world.settle()

    assert "own" in world.replicas
    assert "own" in world.assignments
    assert world.running() == {"v1": 1}
