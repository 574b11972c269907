"""What `module:app` names: found, built, or explained."""

from __future__ import annotations

import sys
from itertools import count

import pytest

from qserve import target
from qserve.deployment import Application
from qserve.errors import DeployFailed, UsageError

_NUMBERS = count()
MODULE = """
from pydantic import BaseModel
import qserve as serve

@serve.deployment
class Model:
    pass

class Size(BaseModel):
    layers: int = 1

class Namespace:
    app = Model.bind()

app = Model.bind()
number = 5
plain = lambda: Model.options(name="plain").bind()

def build(args):
    return Model.options(name=args["name"]).bind()

def build_typed(size: Size):
    return Model.options(name=f"layers{size.layers}").bind()

def wrong():
    return Model

def two(a, b):
    return app

def raises():
    return 1 / 0
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """`module("text")` writes a module with a name of its own, and returns the name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written = []

    def write(text: str = MODULE) -> str:
        name = f"target_{next(_NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["app", "Namespace.app"])
def test_an_application_is_found_by_its_name(module, name):
    """As in Ray Serve, and as uvicorn's users know it."""
    assert isinstance(target.load(f"{module()}:{name}", {}), Application)


@pytest.mark.parametrize(
    ("name", "arguments", "deployment"),
    [
        ("plain", {}, "plain"),
        ("build", {"name": "given"}, "given"),
        ("build_typed", {"layers": "12"}, "layers12"),
        ("build_typed", {}, "layers1"),
    ],
)
def test_a_builder_is_called_with_the_arguments(module, name, arguments, deployment):
    """None, a dict, or the pydantic model that it is annotated with: text becomes numbers there."""
    assert target.load(f"{module()}:{name}", arguments).deployment.name == deployment


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("nope", {}, "has no 'nope'. It has: ['app', 'build', 'build_typed'"),
        ("Model", {}, "is a Deployment: bind it to its arguments, as in `app = Model.bind()`"),
        ("number", {}, "is a int. Name an Application"),
        ("app", {"a": "b"}, "takes no arguments"),
        ("plain", {"a": "b"}, "takes no arguments"),
        ("wrong", {}, "a builder returns an Application"),
        ("two", {}, "takes 2 arguments; it takes none, or one dict"),
    ],
)
def test_a_name_of_the_wrong_kind_says_what_it_is(module, name, arguments, says):
    """Forgetting .bind() is the commonest mistake of all."""
    with pytest.raises(UsageError) as caught:
        target.load(f"{module()}:{name}", arguments)
    assert says in str(caught.value)


@pytest.mark.parametrize("path", ["app", "module:", ":app", "", ".app"])
def test_a_path_without_both_parts_is_explained(path):
    """The form is in the message."""
    with pytest.raises(UsageError, match="write module:name"):
        target.load(path, {})


def test_a_path_with_dots_only_is_ray_serves(module):
    """Ported config files hold both forms."""
    assert isinstance(target.load(f"{module()}.app", {}), Application)


def test_arguments_that_the_model_refuses_are_told_without_a_traceback(module):
    """They are the caller's, not the code's."""
    with pytest.raises(UsageError, match=r"(?s)The arguments of '.*:build_typed' are not valid: .*layers"):
        target.load(f"{module()}:build_typed", {"layers": "many"})


def test_arguments_keep_their_types(module):
    """A file holds numbers and lists, not only text."""
    name = module(MODULE.replace('args["name"]', 'args["names"][0]'))
    assert target.load(f"{name}:build", {"names": ["first", 2]}).deployment.name == "first"


def test_a_module_that_is_not_there_is_no_error_in_user_code():
    """Most often it is the wrong folder: no traceback helps with that."""
    with pytest.raises(UsageError, match="There is no module 'no_such_module' in this folder"):
        target.load("no_such_module:app", {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_module_that_fails_shows_its_own_line_and_none_of_ours(module, text, says):
    """The traceback begins where the user can act."""
    name = module(text)
    with pytest.raises(DeployFailed) as caught:
        target.load(f"{name}:app", {})
    assert says in str(caught.value)
    assert f"{name}.py" in str(caught.value)
    assert "target.py" not in str(caught.value).replace(f"{name}.py", "")


def test_a_builder_that_raises_shows_its_line(module):
    """As any function of the user's."""
    with pytest.raises(DeployFailed, match=r"(?s)The builder .*in raises.*ZeroDivisionError"):
        target.load(f"{module()}:raises", {})
