"""A bound application becomes a flat list of deployments; the applications in its arguments become handles."""

import logging
import platform
import threading
from dataclasses import dataclass
from typing import Any

import pytest

import qserve as serve
from qserve.deployment import Application
from qserve.errors import SerializationError
from qserve.graph import FlatApp, flatten, load_code


class Holder:
    def __init__(self, *args: object, **kwargs: object) -> None:
        self.args = args
        self.kwargs = kwargs


@dataclass
class Route:
    path: str
    target: object


Echo = serve.deployment(name="Echo")(Holder)
Web = serve.deployment(name="Web")(Holder)


def flat(root: Application, name: str = "app") -> FlatApp:
    """The application, flattened."""
    return flatten(root, name=name, deploy_id="d1", now_s=1.5, route_prefix="/")


def names(app: FlatApp) -> list[str]:
    """Its deployments' names, in order."""
    return [spec.name for spec in app.spec.deployments]


def arguments(app: FlatApp, deployment: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a replica constructs the deployment with; a handle is shown as its application and deployment."""
    spec = app.spec.deployment(deployment)
    assert spec is not None
    _target, args, kwargs = load_code(app.code[spec.version], lambda app_name, name: f"handle of {app_name}.{name}")
    return args, kwargs


def test_one_deployment_is_an_application():
    """Its spec holds what the controller and the workers need to know."""
    app = flat(Echo.options(num_replicas=3).bind(1, two=2))
    (spec,) = app.spec.deployments

    assert (app.spec.name, app.spec.ingress, app.spec.deploy_id) == ("app", "Echo", "d1")
    assert (app.spec.deployed_at_s, app.spec.route_prefix) == (1.5, "/")
    assert (spec.app, spec.name, spec.replicas, spec.python) == ("app", "Echo", 3, platform.python_version())
    assert app.code.keys() == {spec.version}
    assert arguments(app, "Echo") == ((1,), {"two": 2})


def test_the_class_arrives_with_its_arguments():
    """The replica gets the very class, imported by its name where it has one."""
    app = flat(Echo.bind())
    target, _args, _kwargs = load_code(app.code[app.spec.deployments[0].version], lambda *_: None)

    assert target is Holder


def test_applications_anywhere_in_the_arguments_become_handles():
    """In lists, dicts and objects, by position and by keyword: composition needs no wiring."""
    one, two, three, four = (Echo.options(name=f"Echo{number}").bind() for number in range(4))
    app = flat(Web.bind(one, [1, {"deep": (two,)}], route=Route("/", three), nested={"list": [[four]]}))

    assert arguments(app, "Web") == (
        ("handle of app.Echo0", [1, {"deep": ("handle of app.Echo1",)}]),
        {"route": Route("/", "handle of app.Echo2"), "nested": {"list": [["handle of app.Echo3"]]}},
    )
    assert app.spec.ingress == "Web"
    assert sorted(names(app)) == ["Echo0", "Echo1", "Echo2", "Echo3", "Web"]


def test_what_is_called_comes_before_its_caller():
    """Deep chains start at their end: a caller's replica finds the deployments that it calls."""
    app = flat(Web.bind(Echo.options(name="Middle").bind(Echo.bind())))

    assert names(app) == ["Echo", "Middle", "Web"]


def test_the_same_application_twice_is_one_deployment():
    """Two callers that share a model share its replicas: that is what binding it once means."""
    model = Echo.bind()
    left, right = Echo.options(name="Left").bind(model), Echo.options(name="Right").bind([model])
    app = flat(Web.bind(left, right, model))

    assert sorted(names(app)) == ["Echo", "Left", "Right", "Web"]
    assert arguments(app, "Left") == (("handle of app.Echo",), {})
    assert arguments(app, "Right") == ((["handle of app.Echo"],), {})


def test_different_applications_of_one_name_get_numbers(caplog: pytest.LogCaptureFixture):
    """Both are wanted; a warning says under which name the second one runs."""
    with caplog.at_level(logging.WARNING, "qserve.graph"):
        app = flat(Web.bind(Echo.bind(1), Echo.bind(2), Echo.bind(3)))

    assert names(app) == ["Echo", "Echo_1", "Echo_2", "Web"]
    assert [arguments(app, name)[0] for name in ("Echo", "Echo_1", "Echo_2")] == [(1,), (2,), (3,)]
    assert [record.getMessage() for record in caplog.records] == [
        "Two different applications are named 'Echo'; one is deployed as 'Echo_1'.",
        "Two different applications are named 'Echo'; one is deployed as 'Echo_2'.",
    ]


def test_a_number_that_is_taken_is_skipped():
    """A deployment that is really named `Echo_1` keeps its name."""
    app = flat(Web.bind(Echo.options(name="Echo_1").bind(), Echo.bind(1), Echo.bind(2)))

    assert names(app) == ["Echo_1", "Echo", "Echo_2", "Web"]


def test_what_cannot_be_pickled_is_named():
    """The text is the one that users' tests already match, and it says what to do."""
    with pytest.raises(TypeError, match=r"Could not serialize the deployment 'Echo': .*lock.* in the constructor inst"):
        flat(Echo.bind(threading.Lock()))
    with pytest.raises(SerializationError, match="Could not serialize the deployment 'Inner'"):
        flat(Web.bind([Echo.options(name="Inner").bind(guard=threading.Lock())]))


def test_a_class_that_cannot_be_pickled_is_named():
    """A lock in the class's closure stops it as a lock in the arguments does."""
    lock = threading.Lock()

    class Guarded:
        def __call__(self) -> bool:
            return lock.locked()

    with pytest.raises(SerializationError, match="Could not serialize the deployment 'Guarded'"):
        flat(serve.deployment(Guarded).bind())


def test_a_function_is_an_application():
    """It travels by value where it has no name to import it by."""

    def double(x: int) -> int:
        return 2 * x

    app = flat(serve.deployment(double).bind())
    target, args, kwargs = load_code(app.code[app.spec.deployments[0].version], lambda *_: None)

    assert (target(21), args, kwargs) == (42, (), {})


def test_an_application_that_uses_another_in_its_code_is_found():
    """A method may refer to an application of its module; what arrives in the replica is a handle."""
    inner = Echo.bind()

    class Outer:
        def target(self) -> object:
            return inner

    app = flat(serve.deployment(Outer).bind())
    made, _args, _kwargs = load_code(app.code[app.spec.deployments[-1].version], lambda *name: name)

    assert names(app) == ["Echo", "Outer"]
    assert made().target() == ("app", "Echo")
