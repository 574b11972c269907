"""`DeploymentHandle`: the name of a deployment and a method; light, picklable, shared by threads and processes."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import qserve as serve
from qserve.errors import ApplicationNotFound, DeploymentNotFound, DeploymentUnavailableError, QserveError
from qserve.exceptions import RayServeException
from qserve.handle import DeploymentHandle


@serve.deployment
class Echo:
    def __call__(self, value: Any) -> Any:
        return value

    def named(self, value: Any) -> Any:
        return ("named", value)


@serve.deployment
class Finder:
    """Asks for handles by name, as code does that was not given them."""

    def __init__(self, echo: DeploymentHandle[Any]) -> None:
        self._echo = echo

    async def echo_of_my_own_application(self, value: Any) -> Any:
        return await serve.get_deployment_handle("Echo").remote(value)

    def echo_from_a_thread(self, value: Any) -> Any:
        return serve.get_deployment_handle("Echo").remote(value).result(timeout_s=5)

    async def echo_of(self, app: str, value: Any) -> Any:
        return await serve.get_app_handle(app).remote(value)

    async def missing(self) -> Any:
        return serve.get_deployment_handle("Nobody")


@pytest.fixture(scope="module")
def echo(cluster):
    """The handle of an application of one deployment."""
    return serve.run(Echo.bind(), name="echo")


@pytest.fixture(scope="module")
def finder(echo):
    """The handle of an application of two."""
    return serve.run(Finder.bind(Echo.bind()), name="finder")


def test_an_attribute_names_a_method(echo):
    """`handle.named` is short for `handle.options(method_name="named")`."""
    assert echo.named.remote(1).result(timeout_s=5) == ("named", 1)
    assert echo.options(method_name="named").remote(1).result(timeout_s=5) == ("named", 1)


def test_a_second_attribute_names_another_method(echo):
    """A handle has one method: the last name wins."""
    assert echo.nothing.named == echo.named


def test_any_attribute_works_until_the_call_runs(echo):
    """A handle never asks whether something exists: it may be made before the deployment."""
    with pytest.raises(QserveError, match="'nothing_like_it' that does not exist"):
        echo.nothing_like_it.remote().result(timeout_s=5)


def test_options_makes_a_new_handle_and_leaves_the_old_one(echo):
    """A handle that is shared must not change under its other holders."""
    changed = echo.options(method_name="named")

    assert changed is not echo
    assert changed != echo
    assert echo.remote(1).result(timeout_s=5) == 1


def test_options_that_are_not_given_keep_their_values(echo):
    """Options are added one by one, in any order."""
    chosen = echo.options(request_serialization="json").options(method_name="named")

    assert chosen == echo.options(method_name="named", request_serialization="json")
    assert chosen.remote(1).result(timeout_s=5) == ["named", 1], "JSON has no tuples"


def test_an_unknown_option_is_a_type_error(echo):
    """A misspelt option must not be ignored."""
    with pytest.raises(TypeError, match="methodname"):
        echo.options(methodname="named")
    with pytest.raises(
        ValueError, match=r"request_serialization='xml': it is one of \['cloudpickle', 'json', 'pickle'\]"
    ):
        echo.options(request_serialization="xml")


def test_names_and_repr(echo):
    """What a log line shows, and what Ray's users read."""
    assert (echo.deployment_name, echo.app_name) == ("Echo", "echo")
    assert echo.deployment_id == "echo.Echo"
    assert repr(echo) == "DeploymentHandle(deployment='Echo')"
    assert repr(echo.named) == "DeploymentHandle(deployment='Echo')"


def test_handles_of_the_same_name_are_equal(echo):
    """They may be compared, and be keys of a dict."""
    again = serve.get_app_handle("echo")

    assert again == echo
    assert hash(again) == hash(echo)
    assert {echo: 1}[again] == 1
    assert echo != echo.named
    assert echo != "echo"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda handle: pickle.loads(pickle.dumps(handle))])
def test_a_handle_can_be_copied_and_pickled(echo, duplicate):
    """It is a name: a copy is as good, wherever it gets to."""
    twin = duplicate(echo.named)

    assert twin == echo.named
    assert twin.remote(1).result(timeout_s=5) == ("named", 1)


def test_a_handle_is_small(echo):
    """It rides in arguments by the thousand."""
    assert len(pickle.dumps(echo)) < 150


def test_a_handle_is_used_from_many_threads(echo):
    """A web server's threads share one."""
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda number: echo.remote(number).result(timeout_s=10), range(400))

    assert list(answers) == list(range(400))


def test_private_names_are_methods_but_dunder_names_are_not(echo):
    """`copy`, `pickle` and `inspect` ask for dunder names, and must be told that there are none."""
    assert isinstance(echo._anything, DeploymentHandle)
    with pytest.raises(AttributeError):
        _ = echo.__anything__


def test_get_app_handle_gives_the_outermost_deployment(finder):
    """Any process calls an application by its name alone."""
    assert serve.get_app_handle("finder") == finder


def test_get_deployment_handle_gives_any_deployment(finder):
    """Also those in the middle, for tests and repairs."""
    assert serve.get_deployment_handle("Echo", "finder").remote(5).result(timeout_s=5) == 5
    assert serve.get_deployment_handle("Echo", app_name="finder") == DeploymentHandle("Echo", "finder")


def test_get_deployment_handle_outside_of_a_replica_needs_the_application(finder):
    """There is no "own" application out here."""
    with pytest.raises(RayServeException, match="needs an app_name"):
        serve.get_deployment_handle("Echo")


async def test_inside_a_replica_the_application_is_its_own(finder):
    """Code of an application need not know under which name it is deployed."""
    assert await finder.echo_of_my_own_application.remote(1) == 1
    assert await finder.echo_from_a_thread.remote(2) == 2


async def test_a_replica_calls_other_applications_by_name(finder, echo):
    """Applications are deployed apart, and still know each other."""
    assert await finder.echo_of.remote("echo", 3) == 3


def test_an_unknown_deployment_is_a_key_error(finder):
    """Ray's users catch KeyError; the message lists what there is."""
    with pytest.raises(
        KeyError, match=r"'Nobody' does not exist in application 'finder'. It has: \['Echo', 'Finder'\]"
    ):
        serve.get_deployment_handle("Nobody", "finder")
    with pytest.raises(DeploymentNotFound):
        finder.missing.remote().result(timeout_s=5)


def test_an_unknown_application_lists_those_there_are(finder, echo):
    """A typing error is found by reading the error."""
    with pytest.raises(RayServeException, match=r"Application 'eco' does not exist.*'echo', 'finder'"):
        serve.get_app_handle("eco")
    with pytest.raises(ApplicationNotFound):
        serve.get_deployment_handle("Echo", "eco")


def test_a_handle_of_nothing_is_made_and_its_call_fails_at_once(cluster):
    """Ray Serve's call would wait for ever; this one says that nothing is deployed there."""
    handle: DeploymentHandle[Any] = DeploymentHandle("Later", "later")

    with pytest.raises(DeploymentUnavailableError, match="'Later' of application 'later' is not deployed"):
        handle.remote().result(timeout_s=5)


def test_a_handle_that_was_made_early_works_once_its_deployment_is_there(cluster):
    """Start order is free."""
    handle: DeploymentHandle[Any] = DeploymentHandle("Echo", "early")
    serve.run(Echo.bind(), name="early")

    assert handle.remote(1).result(timeout_s=5) == 1


def test_a_thread_of_its_own_may_make_the_first_call(echo):
    """Nothing depends on the main thread."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(echo.remote(1).result(timeout_s=5)))
    thread.start()
    thread.join()

    assert answers == [1]
