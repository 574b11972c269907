"""Replicas that do not start, die, or lose their node: what is shown, what is tried again, and when it ends."""

from math import inf

import pytest

from qserve.controller.actions import Assign, Close, CloseReason
from qserve.controller.status import idle_failures
from tests.controller.world import World, spec


def deployed(*nodes: str, replicas: int = 2) -> World:
    """A cluster in which version v1 of `Echo` runs, and version v2 would not start."""
    world = World.of(*(nodes or ("n1", "n2")))
    world.broken.add("v2")
    world.deploy(spec(replicas=replicas))
    world.settle()
    return world


def starts_until_quiet(world: World) -> int:
    """How many replicas are started until the plan gives up."""
    started = 0
    for _ in range(100):
        started += sum(isinstance(action, Assign) for action in world.turn())
        world.work()
        world.now += 1.0
    assert world.decide() == []
    return started


@pytest.mark.parametrize(
    ("replicas", "retries", "starts"), [(1, 20, 3), (2, 20, 6), (10, 20, 20), (2, 5, 5), (1, 1, 1), (4, 20, 12)]
)
def test_a_constructor_that_fails_is_given_up(replicas: int, retries: int, starts: int):
    """After min(max_constructor_retry_count, 3 x replicas) failures nobody believes in it any more."""
    world = World.of("n1")
    world.broken.add("v1")
    world.deploy(spec(replicas=replicas, max_constructor_retry_count=retries))

    assert starts <= starts_until_quiet(world) < starts + replicas
    assert world.info().failures >= starts
    assert world.assignments == {}


def test_a_failed_deploy_tells_the_replicas_own_error():
    """The traceback that the author needs, not a sentence about it."""
    world = World.of("n1")
    world.broken.add("v1")
    world.deploy(spec(replicas=1))
    world.settle()

    assert world.shown() == ("DEPLOY_FAILED", "DEPLOY_FAILED", "REPLICA_STARTUP_FAILED")
    assert world.info().message == ("The deployment failed to start 3 times in a row. Error:\nValueError: v1 is broken")
    assert world.statuses["app"].message == f"Echo: {world.info().message}"
    assert world.replicas == {}


def test_a_first_failure_is_shown_while_it_is_tried_again():
    """Who waits sees the error at once, not only when all attempts are used up."""
    world = World.of("n1")
    world.broken.add("v1")
    world.deploy(spec(replicas=1))
    for _ in range(3):
        world.turn()
        world.work()
    world.turn()

    assert world.shown() == ("DEPLOYING", "UPDATING", "CONFIG_UPDATE_STARTED")
    assert world.info().message == "ValueError: v1 is broken"


def test_the_next_attempt_waits_longer_each_time():
    """A constructor that fails because a database is down should not storm it."""
    world = World.of("n1")
    world.deploy(spec(replicas=1, max_constructor_retry_count=100))
    world.settle()
    waits = []
    for _ in range(8):
        (replica_id,) = world.assignments
        world.end(replica_id)
        world.turn()
        wait = 0.0
        while not any(isinstance(action, Assign) for action in world.decide(now=world.now + wait)):
            wait += 0.1
        waits.append(round(wait, 1))
        world.now += wait
        world.turn()
        world.work()

    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_replicas_that_fail_together_are_one_failure_of_the_backoff():
    """Twelve starts of four replicas are three rounds: the answer comes within a second, not after half a minute."""
    world = World.of("n1")
    world.broken.add("v1")
    world.deploy(spec(replicas=4))
    began = world.now
    while world.statuses.get("app") is None or world.statuses["app"].status != "DEPLOY_FAILED":
        world.turn()
        world.work()
        world.now += 0.05

    assert world.now - began < 1.5


def test_a_crash_loop_of_a_week_does_not_break_the_plan():
    """2 to the power of the number of failures is a number that no float holds, and the leader would die of it."""
    world = deployed("n1", replicas=1)
    status = world.statuses["app"]
    info = world.info().model_copy(update={"failures": 50_000})
    world.statuses["app"] = status.model_copy(update={"deployments": {"Echo": info}})
    (replica_id,) = world.assignments
    world.end(replica_id)
    world.turn()

    assert any(isinstance(action, Assign) for action in world.decide(now=world.now + 11))


def test_new_code_that_cannot_start_leaves_the_old_version_serving():
    """A bad deploy is an error message, not an outage."""
    world = deployed()
    serving = set(world.assignments)
    world.deploy(spec(version="v2"))
    for _ in range(100):
        world.turn()
        assert world.running()["v1"] == 2
        world.work()
        world.now += 1.0

    assert set(world.assignments) == serving
    assert world.shown() == ("DEPLOY_FAILED", "DEPLOY_FAILED", "REPLICA_STARTUP_FAILED")
    assert "v2 is broken" in world.info().message


def test_a_deploy_after_a_failed_one_starts_afresh():
    """The mended version takes over; the failures of the broken one are not held against it."""
    world = deployed()
    world.deploy(spec(version="v2"))
    world.settle()
    world.deploy(spec(version="v3"))
    world.settle()

    assert world.running() == {"v3": 2}
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")
    assert (world.info().failures, world.info().message) == (0, "")


def test_the_same_version_can_be_tried_again():
    """What was wrong may have been the database, not the code."""
    world = World.of("n1")
    world.broken.add("v1")
    world.deploy(spec())
    world.settle()
    world.broken.clear()
    world.deploy(spec())
    world.settle()

    assert world.running() == {"v1": 2}
    assert world.statuses["app"].status == "RUNNING"


def test_calls_to_a_deployment_that_failed_and_does_not_run_are_answered():
    """No replica will ever take them; each call that comes later hears so too, until the next deploy."""
    world = World.of("n1")
    world.broken.add("v1")
    world.deploy(spec())
    world.settle()
    assert world.closed == []
    assert idle_failures(world.statuses) == {("app", "Echo")}
    for _ in range(2):
        world.stuck.add(("app", "Echo"))
        assert world.turn() == [Close("app", "Echo", CloseReason.FAILED)]
        assert world.decide() == []

    world.deploy(spec(version="v2"))
    world.stuck.add(("app", "Echo"))
    world.settle()
    assert idle_failures(world.statuses) == frozenset()
    assert len(world.closed) == 2


def test_calls_are_left_to_the_old_version_when_a_new_one_fails():
    """It serves on: the calls that wait are its to take."""
    world = deployed()
    world.deploy(spec(version="v2"))
    world.settle()
    world.stuck.add(("app", "Echo"))

    assert idle_failures(world.statuses) == frozenset()
    assert world.turn() == []


def test_a_failed_deployment_that_is_left_out_fails_no_more():
    """Redeploying without the broken deployment is a deploy that succeeds."""
    world = deployed()
    world.deploy(spec("Bad", version="v2"), spec("Echo"))
    world.settle()
    assert world.statuses["app"].status == "DEPLOY_FAILED"

    world.deploy(spec("Echo"))
    world.turn()
    assert (world.statuses["app"].status, world.statuses["app"].message) == ("RUNNING", "")
    world.settle()
    assert world.statuses["app"].deployments.keys() == {"Echo"}


def test_once_it_has_run_it_is_tried_for_ever():
    """A version that worked yesterday is started again for as long as it takes: a host may be out of memory."""
    world = deployed(replicas=1)
    world.broken.add("v1")
    (replica_id,) = world.assignments
    world.end(replica_id)
    for _ in range(200):
        world.turn()
        world.work()
        world.now += 2.0
    assert world.shown() == ("UNHEALTHY", "UNHEALTHY", "HEALTH_CHECK_FAILED")
    assert world.info().failures > 20

    world.broken.clear()
    world.settle()
    assert world.shown() == ("RUNNING", "HEALTHY", "UNSPECIFIED")


def test_a_replica_that_dies_is_replaced():
    """The others go on; its record goes with it."""
    world = deployed(replicas=3)
    dead, *others = world.assignments
    world.end(dead)
    world.turn()
    assert world.shown() == ("UNHEALTHY", "UNHEALTHY", "HEALTH_CHECK_FAILED")
    assert world.info().message == "killed"

    world.settle()
    assert set(others) < set(world.assignments)
    assert dead not in world.replicas
    assert world.running() == {"v1": 3}
    assert world.shown() == ("RUNNING", "HEALTHY", "UNSPECIFIED")
    assert (world.info().failures, world.info().message) == (0, "")


# When nothing happens but time passes


def test_a_backoff_says_when_to_look_again():
    """Nothing will happen in Redis that would wake the leader."""
    world = deployed(replicas=1)
    (replica_id,) = world.assignments
    world.end(replica_id)
    world.turn()

    assert world.decided().look_again_s == world.now + 0.2
    world.settle()
    assert world.decided().look_again_s == inf


# Health checks


def sick_world(*, during_update: bool) -> World:
    """A replica of the wanted version has failed its health check."""
    world = deployed(replicas=2)
    if during_update:
        world.deploy(spec(version="v3", replicas=3))
        for _ in range(2):
            world.turn()
            world.work()
    replica_id = next(
        a.replica_id for a in world.assignments.values() if a.version == ("v3" if during_update else "v1")
    )
    world.sicken(replica_id)
    world.turn()
    return world


def test_a_failed_health_check_makes_the_deployment_unhealthy_until_it_is_whole():
    """Only the sick replica is replaced."""
    world = sick_world(during_update=False)
    assert world.shown() == ("UNHEALTHY", "UNHEALTHY", "HEALTH_CHECK_FAILED")
    assert world.info().message == "check_health() did not answer"
    assert len(world.assignments) == 1

    world.settle()
    assert world.running() == {"v1": 2}
    assert world.shown() == ("RUNNING", "HEALTHY", "UNSPECIFIED")


def test_a_failed_health_check_of_a_new_version_fails_its_deploy():
    """Who waits for the deploy hears of it at once; the update goes on, and may mend it."""
    world = sick_world(during_update=True)
    assert world.shown() == ("DEPLOY_FAILED", "DEPLOY_FAILED", "HEALTH_CHECK_FAILED")
    assert world.info().message == "check_health() did not answer"

    world.settle()
    assert world.running() == {"v3": 3}
    assert world.shown() == ("RUNNING", "HEALTHY", "UNSPECIFIED")


def test_old_replicas_that_die_during_an_update_are_not_held_against_the_new_version():
    """They were to go anyway."""
    world = deployed(replicas=2)
    old = set(world.assignments)
    world.deploy(spec(version="v3"))
    world.turn()
    for replica_id in old:
        world.end(replica_id)
    world.turn()

    assert world.info().failures == 0
    assert world.shown() == ("DEPLOYING", "UPDATING", "CONFIG_UPDATE_STARTED")
