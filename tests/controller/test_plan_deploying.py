"""From what is wanted to what runs: first deploys, updates, scaling, deletion."""

from collections import Counter
from typing import Any

from qserve.controller.actions import Assign, Close, CloseReason, SetStatus, Unassign
from qserve.spec import ReplicaState
from tests.controller.world import World, spec


def running_world(*nodes: str, replicas: int = 2, **options: Any) -> World:
    """A cluster in which version v1 of `Echo` runs."""
    world = World.of(*(nodes or ("n1", "n2")))
    world.deploy(spec(replicas=replicas, **options))
    world.settle()
    return world


def test_a_first_deploy_starts_all_replicas_at_once():
    """They start beside each other; the application runs when all do."""
    world = World.of("n1", "n2")
    world.deploy(spec(replicas=3))
    actions = world.turn()

    assert [type(action) for action in actions] == [Assign, Assign, Assign, SetStatus]
    assert world.shown() == ("DEPLOYING", "UPDATING", "CONFIG_UPDATE_STARTED")
    assert world.info().message == "0 of 3 replicas are running."

    world.settle()
    assert world.running() == {"v1": 3}
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")
    assert world.info().replica_states == {"RUNNING": 3}
    assert world.statuses["app"].message == ""


def test_nothing_to_do_is_nothing_done():
    """A leader's turn without a change writes nothing, now and a day later."""
    world = running_world()

    assert world.decide() == []
    assert world.decide(now=world.now + 86_400) == []


def test_a_new_leader_goes_on_where_the_last_one_was():
    """All it needs is in what it reads: starting replicas are counted, not started again."""
    world = World.of("n1")
    world.deploy(spec(replicas=2))
    world.turn()
    world.work()

    assert not [action for action in world.decide() if isinstance(action, Assign)]


def test_the_same_version_again_restarts_nothing():
    """`serve.run` in a script that runs twice a day must not interrupt anybody."""
    world = running_world()
    before = dict(world.assignments)
    world.deploy(spec(replicas=2))
    (action,) = world.turn()

    assert isinstance(action, SetStatus)
    assert world.assignments == before
    assert world.statuses["app"].deploy_id == "deploy 2"
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_new_replicas_run_before_old_ones_go():
    """An update has no gap, not even with a single replica."""
    world = running_world(replicas=1)
    world.deploy(spec(replicas=1, version="v2"))
    seen = []
    for _ in range(6):
        world.turn()
        seen.append(dict(world.running()))
        world.work()

    assert seen == [{"v1": 1}, {"v1": 1}, {"v2": 1}, {"v2": 1}, {"v2": 1}, {"v2": 1}]
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_an_update_is_shown_while_it_lasts():
    """Who waits for a deploy sees that the old version still serves."""
    world = running_world()
    world.deploy(spec(version="v2"))
    world.turn()

    assert world.shown() == ("DEPLOYING", "UPDATING", "CONFIG_UPDATE_STARTED")
    assert world.info().version == "v2"
    assert world.info().replica_states == {"RUNNING": 2, "STARTING": 2}


def test_a_version_that_never_ran_makes_way_for_the_next():
    """Three quick deploys of a slow model must not load it three times side by side."""
    world = running_world()
    for version in ("v2", "v3"):
        world.deploy(spec(version=version))
        world.turn()
        world.work()

    assert Counter(a.version for a in world.assigned()) == {"v1": 2, "v3": 2}
    world.settle()
    assert world.running() == {"v3": 2}


def test_going_back_in_mid_update_keeps_what_still_runs():
    """The way back to the version that serves needs no start at all."""
    world = running_world()
    serving = set(world.assignments)
    world.deploy(spec(version="v2"))
    world.turn()
    world.deploy(spec(version="v1"))
    world.turn()

    assert set(world.assignments) == serving
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_an_update_within_a_limit_per_node_replaces_one_at_a_time():
    """Two of a kind do not fit on a host (a GPU's memory, a port): there old ones must go first, never all at once."""
    world = running_world(replicas=2, max_replicas_per_node=1)
    world.deploy(spec(replicas=2, version="v2", max_replicas_per_node=1))
    fewest = 2
    for _ in range(30):
        world.turn()
        present = Counter(record.node_id for record in world.replicas.values())
        assert max(present.values()) == 1
        fewest = min(fewest, world.running().total())
        world.work()

    assert fewest == 1
    assert world.running() == {"v2": 2}
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_scaling_up_is_shown_and_restarts_nothing():
    """Only what is missing starts."""
    world = running_world(replicas=1)
    before = set(world.assignments)
    world.deploy(spec(replicas=3))
    world.turn()
    assert world.shown() == ("DEPLOYING", "UPSCALING", "CONFIG_UPDATE_STARTED")

    world.settle()
    assert before < set(world.assignments)
    assert world.running() == {"v1": 3}
    assert world.shown() == ("RUNNING", "HEALTHY", "UPSCALE_COMPLETED")


def test_scaling_down_is_shown_until_the_surplus_has_left():
    """What drains may still hold calls."""
    world = running_world(replicas=3)
    world.deploy(spec(replicas=1))
    world.turn()
    assert world.shown() == ("DEPLOYING", "DOWNSCALING", "CONFIG_UPDATE_STARTED")
    assert world.info().message == "2 replicas are leaving."

    world.settle()
    assert world.running() == {"v1": 1}
    assert world.shown() == ("RUNNING", "HEALTHY", "DOWNSCALE_COMPLETED")


def test_scaling_down_takes_those_that_still_start():
    """They serve nobody yet."""
    world = running_world(replicas=1)
    serving = set(world.assignments)
    world.deploy(spec(replicas=3))
    world.turn()
    world.deploy(spec(replicas=1))
    world.turn()

    assert set(world.assignments) == serving


def test_other_applications_are_untouched():
    """A deploy of one team is no event for another."""
    world = running_world()
    before = dict(world.assignments)
    world.deploy(spec(app="other", name="Echo"))
    world.settle()

    assert before.items() <= world.assignments.items()
    assert world.shown(app="other") == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_a_deleted_application_drains_closes_its_queues_and_disappears():
    """Calls that wait are answered while it drains; the queue goes when no replica is left that could take from it."""
    world = running_world()
    world.delete()
    actions = world.turn()

    assert Counter(type(action) for action in actions) == {Unassign: 2, Close: 1, SetStatus: 1}
    assert world.closed[-1] == Close("app", "Echo", CloseReason.DELETED, last=False)
    assert world.statuses["app"].status == "DELETING"
    assert world.info().status_trigger == "DELETING"

    world.settle()
    assert world.closed[-1] == Close("app", "Echo", CloseReason.DELETED, last=True)
    assert (world.statuses, world.replicas, world.assignments) == ({}, {}, {})


def test_a_deployment_that_left_its_application_is_closed():
    """The others stay; the application runs as soon as those that it wants do."""
    world = World.of("n1")
    world.deploy(spec("Old", replicas=1), spec("Echo", replicas=1))
    world.settle()
    echo = world.running("Echo")
    world.deploy(spec("Echo", replicas=1))
    world.turn()
    assert world.statuses["app"].status == "RUNNING"
    assert world.info("Old").status_trigger == "DELETING"

    world.settle()
    assert (world.running("Echo"), world.assigned("Old")) == (echo, [])
    assert world.statuses["app"].deployments.keys() == {"Echo"}


def test_an_application_that_comes_back_while_it_leaves_is_deployed():
    """Delete and run again in one script: the new deploy must not be taken down by the old deletion."""
    world = running_world()
    world.delete()
    world.turn()
    world.deploy(spec())
    world.settle()

    assert world.running() == {"v1": 2}
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_without_a_worker_the_status_says_so():
    """The most common reason why a first deploy does not come up."""
    world = World()
    world.deploy(spec())
    world.settle()

    assert world.shown() == ("DEPLOYING", "UPDATING", "CONFIG_UPDATE_STARTED")
    assert "No worker has joined: start one with `qserve worker`" in world.statuses["app"].message


def test_a_replica_that_still_starts_is_not_counted_as_running():
    """An application is RUNNING when it answers, not when it tries."""
    world = World.of("n1")
    world.deploy(spec(replicas=1))
    world.turn()
    world.work()
    world.turn()

    assert [world.state(replica_id) for replica_id in world.assignments] == [ReplicaState.STARTING]
    assert world.statuses["app"].status == "DEPLOYING"
