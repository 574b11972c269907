"""What operators change of an application: one thing, and nothing else of it."""

from __future__ import annotations

import pytest

from qserve.deploying.edits import Pause, Restart, Scale, earlier
from qserve.errors import DeploymentNotFound, UsageError
from tests.deploying.specs import application, deployment

SHOP = application(deployment(), deployment("Front", version="bb"))


def test_scale_changes_the_number_of_one_deployment():
    """And what `config show` says of it; its version stays, so nothing restarts."""
    model, front = Scale("Model", 3)(SHOP).deployments

    assert (model.replicas, model.config.num_replicas, model.version) == (3, 3, "aa")
    assert front == SHOP.deployments[1]


def test_an_autoscaled_deployment_is_not_scaled_by_hand():
    """The autoscaler would change it back in a second: the error says where its limits are."""
    shop = application(deployment(autoscaling_config={"max_replicas": 4}))
    with pytest.raises(UsageError, match=r"shop\.Model is autoscaled.*min_replicas and max_replicas"):
        Scale("Model", 3)(shop)


@pytest.mark.parametrize(("name", "paused"), [("Front", [False, True]), (None, [True, True])])
def test_pause_is_for_one_deployment_or_for_all(name, paused):
    """A database that is down concerns one of them, a migration all."""
    assert [spec.paused for spec in Pause(name, paused=True)(SHOP).deployments] == paused


def test_a_restart_is_another_version_of_the_same_code():
    """A second restart is one more."""
    once = Restart("Front", "11111111")(SHOP)
    twice = Restart("Front", "22222222")(once)

    assert [spec.version for spec in once.deployments] == ["aa", "bb-11111111"]
    assert [spec.version for spec in twice.deployments] == ["aa", "bb-22222222"]


@pytest.mark.parametrize("edit", [Scale("Nope", 2), Pause("Nope", paused=True), Restart("Nope", "1")], ids=repr)
def test_an_unknown_deployment_is_answered_with_those_there_are(edit):
    """A typo is found at a glance."""
    with pytest.raises(DeploymentNotFound, match=r"'Nope' does not exist in application 'shop'. It has: \['Model'"):
        edit(SHOP)


def test_an_earlier_version_is_counted_back_from_the_present_one():
    """It takes calls, whatever it did when it was replaced."""
    paused = Pause(None, paused=True)(application(deployment(), deploy_id="d2"))
    versions = [application(deployment(), deploy_id="d3"), paused, application(deployment(), deploy_id="d1")]

    assert earlier("shop", versions, 2) == versions[2]
    assert earlier("shop", versions, 1) == application(deployment(), deploy_id="d2")


@pytest.mark.parametrize("back", [0, 3, -1])
def test_a_version_that_is_not_there_is_refused_with_those_there_are(back):
    """With the command that shows them."""
    versions = [application(deployment())] * 3
    with pytest.raises(UsageError, match=rf"cannot go back by {back}, only by 1, 2.*rollback shop --list"):
        earlier("shop", versions, back)


def test_an_application_that_was_deployed_once_has_nothing_to_go_back_to():
    """It says so, not a list of none."""
    with pytest.raises(UsageError, match="has no earlier version: it was deployed once"):
        earlier("shop", [SHOP], 1)
