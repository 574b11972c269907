"""`request_serialization="json"`: plain data that programs in other languages can read and write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

import qserve as serve
from qserve.errors import MethodNotFound, RemoteError, SerializationError


@dataclass
class Point:
    x: int


@serve.deployment
class Plain:
    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"args": list(args), "kwargs": kwargs}

    def fails(self) -> None:
        raise ValueError("no good")

    def returns_a_point(self) -> Point:
        return Point(1)


@pytest.fixture(scope="module")
def plain(cluster):
    """A handle whose calls and replies are JSON."""
    return serve.run(Plain.bind(), name="plain").options(request_serialization="json")


def test_plain_data_goes_there_and_back(plain):
    """Numbers, texts, lists, dicts, null, true: what every language has."""
    answer = plain.remote(1, 2.5, "ü", [None, True], key={"a": [1]}).result(timeout_s=5)

    assert answer == {"args": [1, 2.5, "ü", [None, True]], "kwargs": {"key": {"a": [1]}}}


def test_tuples_become_lists(plain):
    """JSON has one kind of sequence; better said here than found out later."""
    assert plain.remote((1, 2)).result(timeout_s=5)["args"] == [[1, 2]]


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", Point(1), object()])
def test_what_json_cannot_hold_is_refused_at_once(plain, value):
    """The caller's own line raises, and names the kind of value."""
    with pytest.raises(SerializationError, match=rf"argument number 2.*{type(value).__name__}"):
        plain.remote(1, value)


def test_a_keyword_that_json_cannot_hold_is_named(plain):
    """Which one of many is at fault."""
    with pytest.raises(SerializationError, match=r"argument 'point'.*Point"):
        plain.remote(1, point=Point(1))


def test_a_result_that_json_cannot_hold_is_an_error_of_the_call(plain):
    """The method has run; the caller hears why there is no value."""
    with pytest.raises(SerializationError, match=r"JSON has no form for this value.*Point"):
        plain.returns_a_point.remote().result(timeout_s=5)


def test_exceptions_arrive_as_their_class_name_and_text(plain):
    """Another language has no ValueError; what it needs is the name, the message and the traceback."""
    with pytest.raises(RemoteError, match="ValueError: no good") as caught:
        plain.fails.remote().result(timeout_s=5)

    assert caught.value.class_name == "ValueError"
    assert "in fails" in caught.value.traceback_str


def test_an_unknown_method_is_told_in_json_as_well(plain):
    """Every error of a call has a form in JSON."""
    with pytest.raises(MethodNotFound, match="'nope' that does not exist"):
        plain.nope.remote().result(timeout_s=5)


def test_the_deployment_need_not_know(plain):
    """The same replica answers pickled calls and JSON ones, side by side."""
    pickled = serve.get_app_handle("plain")

    assert pickled.remote((1, 2)).result(timeout_s=5)["args"] == [(1, 2)]
    assert plain.remote((1, 2)).result(timeout_s=5)["args"] == [[1, 2]]
