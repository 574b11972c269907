"""`qserve call`: any deployment from a terminal, in JSON."""

from __future__ import annotations

import json

import pytest

import qserve as serve


@serve.deployment
class Calculator:
    def __call__(self, *args, **kwargs):
        return {"args": args, "kwargs": kwargs}

    def divide(self, left, right):
        return left / right

    def city(self):
        return "Zürich"

    def thing(self):
        return object()


@serve.deployment(name="with.dots", ray_actor_options={"num_cpus": 0})
class Dotted:
    def __call__(self):
        return "dotted"

    def method(self):
        return "its method"


@serve.deployment
class Ingress:
    def __init__(self, *others):
        pass


@pytest.fixture(scope="module", autouse=True)
def app(cluster):
    """Deployed once for all tests."""
    serve.run(Ingress.bind(Calculator.bind(), Dotted.bind()), name="math")


@pytest.mark.parametrize(
    ("arguments", "arrives"),
    [
        ((), {"args": [], "kwargs": {}}),
        (('[1, "two", null]',), {"args": [1, "two", None], "kwargs": {}}),
        (('{"left": 1.5}',), {"args": [], "kwargs": {"left": 1.5}}),
        (('[{"left": 1}]',), {"args": [{"left": 1}], "kwargs": {}}),
    ],
)
def test_a_list_is_positional_and_an_object_is_keywords(invoke, arguments, arrives):
    """Everything that a handle can pass has a form on the command line."""
    assert json.loads(invoke("call", "math.Calculator", *arguments).stdout) == arrives


def test_the_result_is_one_line_of_json(invoke):
    """For jq; and letters beyond ASCII stay letters."""
    assert invoke("call", "math.Calculator.city").stdout == '"Zürich"\n'


@pytest.mark.parametrize(("path", "answer"), [("math.with.dots", "dotted"), ("math.with.dots.method", "its method")])
def test_a_deployments_name_may_hold_dots(invoke, path, answer):
    """Names are looked up, not guessed."""
    assert json.loads(invoke("call", path).stdout) == answer


def test_an_exception_is_its_type_its_message_and_the_users_line(invoke):
    """As if the method had been called here; 1 tells scripts."""
    result = invoke("call", "math.Calculator.divide", "[1, 0]")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ZeroDivisionError: division by zero\n")
    assert "return left / right" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nope.Calculator", "Application 'nope' does not exist. Deployed in namespace"),
        ("math.Nope", "Deployment 'Nope' does not exist in application 'math'. It has: ['Calculator', 'with.dots'"),
        ("math.Nope.method", "Deployment 'Nope' does not exist"),
        ("math.Calculator.nope", "method 'nope' that does not exist. Available methods: ['__call__', 'city', 'divide'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(invoke, path, says):
    """Typing errors are the commonest of all, and cost one more look at most."""
    result = invoke("call", path)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("math",), "'math' is not APP.DEPLOYMENT"),
        (("math.Calculator", "{'a': 1}"), "are not JSON"),
        (("math.Calculator", "5"), "write '[5]' for one argument"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(invoke, arguments, says):
    """Quoting JSON in a shell goes wrong often enough: the message shows how."""
    result = invoke("call", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_result_that_json_has_no_form_for_is_said_to_be_one(invoke):
    """The method has run; nothing is wrong with it but its result."""
    result = invoke("call", "math.Calculator.thing")
    assert result.exit_code == 1
    assert "JSON has no form for this value" in result.stderr


def test_no_reply_in_time_exits_with_3(invoke):
    """A script can tell slow from broken."""
    result = invoke("call", "math.Calculator.city", "--timeout-s", "0")
    assert result.exit_code == 3
    assert "No reply from 'Calculator.city' within 0 s" in result.stderr
