"""`qserve scale`, `pause`, `resume`, `restart`, `rollback`: one change, shown before, waited for, and told."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

import qserve as serve
from qserve import api
from qserve.errors import DeployTimeout
from tests.cli import shop
from tests.support.cluster import eventually


@pytest.fixture(autouse=True)
def app(cluster):
    """The application as its code has it, for each test."""
    return serve.run(shop.app, name="shop")


def pids(deployment: str = "Greeter") -> set[int]:
    """The processes of a deployment."""
    return {r.pid for r in api.replicas() if (r.app, r.deployment) == ("shop", deployment)}


def test_scale_adds_replicas_and_restarts_none(invoke):
    """A sale begins: more of the same, now."""
    before = pids()
    result = invoke("scale", "shop.Greeter", "3")

    assert (result.exit_code, result.stderr) == (0, "")
    assert "shop.Greeter  scale   2 -> 3 replicas" in result.stdout
    assert result.stdout.endswith("shop.Greeter: running, 3 replicas\nshop.Greeter has its replicas.\n")
    assert before < pids()
    assert len(pids()) == 3


def test_the_next_deploy_brings_the_number_of_the_code_back(invoke):
    """What was typed at night does not outlive the next release."""
    invoke("scale", "shop.Greeter", "1")
    serve.run(shop.app, name="shop")

    eventually(lambda: len(pids()) == 2)


def test_an_autoscaled_deployment_is_refused_with_what_to_change(invoke):
    """Else the autoscaler and the operator undo each other's work."""
    serve.run(shop.scaled, name="scaled")
    result = invoke("scale", "scaled.Scaled", "2")

    assert result.exit_code == 2
    assert "scaled.Scaled is autoscaled" in result.stderr
    assert "min_replicas and max_replicas" in result.stderr


def test_a_paused_deployment_keeps_calls_until_it_is_resumed(invoke, app):
    """A database is migrated: nothing fails, all of it waits. The replicas stay, with their models."""
    before = pids()
    assert invoke("pause", "shop.Greeter").stdout.endswith("`qserve resume shop.Greeter` goes on.\n")
    responses = [app.remote(name) for name in ("Ada", "Eve")]
    eventually(lambda: serve.status("shop").applications["shop"].deployments["Greeter"].waiting == 2)
    assert "paused: `qserve resume shop.Greeter`" in invoke("status", "shop").stdout

    assert invoke("resume", "shop.Greeter").exit_code == 0
    assert [response.result(timeout_s=10) for response in responses] == ["hi Ada", "hi Eve"]
    assert pids() == before


def test_a_whole_application_is_paused_and_resumed(invoke, app):
    """Without naming its deployments one by one."""
    invoke("pause", "shop")
    response = app.remote("Ada")
    assert {spec.paused for spec in api.wanted("shop")[0].deployments} == {True}

    invoke("resume", "shop")
    assert response.result(timeout_s=10) == "hi Ada"


def test_restart_replaces_replicas_of_one_deployment(invoke, app):
    """After a leak, or when a file that the model reads has changed; no call fails, and what is new stays."""
    greeters, fronts = pids(), pids("Front")
    result = invoke("restart", "shop.Greeter")

    assert "shop.Greeter  restart  restarted, the code is the same" in result.stdout
    assert not pids() & greeters
    assert pids("Front") == fronts
    restarted = pids()
    serve.run(shop.app, name="shop")
    assert pids() == restarted


def test_rollback_brings_the_version_before_back_and_is_undone_by_another(invoke, app):
    """A bad release at five in the evening."""
    greeter = serve.get_deployment_handle("Greeter", "shop")
    changed = shop.Greeter.options(user_config={"greeting": "bye"})
    serve.run(shop.Front.bind(changed.bind()), name="shop")
    assert greeter.say.remote("Ada").result(timeout_s=10) == "bye Ada"

    result = invoke("rollback", "shop")
    assert "user_config.greeting 'bye' -> 'hi'" in result.stdout
    assert greeter.say.remote("Ada").result(timeout_s=10) == "hi Ada"
    invoke("rollback", "shop")
    assert greeter.say.remote("Ada").result(timeout_s=10) == "bye Ada"


def test_rollback_brings_code_back(cluster, invoke):
    """Also code that is nowhere else any more: it was a cell in a notebook."""

    def version(answer: str) -> serve.Application:
        class Notebook:
            def __call__(self) -> str:
                return answer

        return serve.deployment(Notebook).bind()

    handle = serve.run(version("one"), name="notebook")
    for answer in ("two", "three"):
        serve.run(version(answer), name="notebook")

    assert invoke("rollback", "notebook", "--to", "2").exit_code == 0
    assert handle.remote().result(timeout_s=10) == "one"


def test_the_versions_are_listed_with_their_time_their_source_and_what_differs(invoke):
    """Which of them was good? The list says what going there would change."""
    serve.run(shop.app, name="listed")
    serve.run(shop.Front.bind(shop.Greeter.options(num_replicas=1).bind()), name="listed")
    rows = [line.split() for line in invoke("rollback", "listed", "--list").stdout.splitlines()]

    assert rows[1][0] == "0"
    assert rows[1][-3:] == ["the", "present", "one"]
    assert rows[2][0] == "1"
    assert rows[2][3:] == ["Python", "Greeter:", "1", "->", "2", "replicas"]
    assert "cannot go back by 9, only by 1" in invoke("rollback", "listed", "--to", "9").stderr
    found = json.loads(invoke("rollback", "listed", "--json").stdout)
    assert [version["deployments"][0]["replicas"] for version in found] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("scale", "shop", "2"), "'shop' is not APP.DEPLOYMENT"),
        (("scale", "shop.Greeter", "0"), "0 is not in the range"),
        (("scale", "shop.Nope", "2"), "It has: ['Greeter', 'Front']."),
        (("pause", "nope"), "Application 'nope' does not exist."),
        (("restart", "shop.Nope"), "It has: ['Greeter', 'Front']."),
        (("rollback", "nope"), "Application 'nope' does not exist."),
        (("status", "--decisions"), "Whose decisions?"),
        (("deploy", "tests.cli.shop:app", "--name", "a.b"), "The application name 'a.b'"),
        (("deploy", "serve.yaml", "a=b"), "A config file has its own `args`"),
        (("deploy", "tests.cli.shop:build"), "The arguments of 'tests.cli.shop:build' are not valid"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_slip_of_the_pen_is_a_wrong_usage(invoke, arguments, says):
    """2, and what there is; nothing has changed."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_no_wait_returns_at_once_and_it_goes_on(invoke):
    """A script that looks later."""
    result = invoke("scale", "shop.Greeter", "3", "--no-wait")

    assert result.stdout.endswith("It goes on by itself: `qserve status --watch` follows it.\n")
    eventually(lambda: len(pids()) == 3)


def test_what_is_not_reached_in_time_exits_with_3(invoke):
    """And says what it waits for."""
    result = invoke("scale", "shop.Greeter", "3", "--timeout-s", "0")

    assert result.exit_code == 3
    assert "Application 'shop' is not running after 0 s." in result.stderr
    with suppress(DeployTimeout):
        api.scale("shop", "Greeter", 2)


def test_one_application_is_deployed_and_others_stay(invoke):
    """MODULE:APP is not the whole truth of the namespace, a file is."""
    result = invoke("deploy", "tests.cli.shop:build", "title=> ", "greeters=1", "--name", "variant")

    assert result.exit_code == 0, result.output
    assert "variant.Greeter  create  1 replica" in result.stdout
    assert serve.get_app_handle("variant").remote("Ada").result(timeout_s=10) == "> hi Ada"
    assert {"shop", "variant"} <= serve.status().applications.keys()
