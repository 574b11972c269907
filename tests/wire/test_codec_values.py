"""Arguments and results: what goes in comes out on the other side, whatever pickle has to be helped with."""

import json
import mmap
import pickle
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qserve.errors import PayloadTooLarge, SerializationError
from qserve.wire import codec
from qserve.wire.messages import FLAG_BUFFERS, Outcome, Reply, Serializer

CALL_ID = bytes(16)


@dataclass
class Point:
    x: int
    y: object = None


class Reference:
    """What a response is to the codec: pickled it notes its id, loaded it becomes the value that was waited for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self):
        codec.note_reference(self.name)
        return (_resolve, (self.name,))


def _resolve(name: str) -> Any:
    inputs = codec.resolved_inputs()
    return Reference(name) if inputs is None else inputs[name]


def travel(*args: Any, inputs: dict[str, Any] | None = None, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as the replica gets them."""
    encoded = codec.encode_arguments(args, kwargs, Serializer.PICKLE)
    return codec.decode_arguments(encoded.data, Serializer.PICKLE, encoded.flags, inputs or {})


def fetch(value: Any, serializer: int = Serializer.PICKLE) -> Any:
    """The result as the caller gets it."""
    return codec.decode_reply(codec.encode_result(CALL_ID, value, serializer))


@pytest.mark.parametrize(
    "value",
    [None, 1, "é", b"x", [1, (2,)], {"a": {3}}, Point(1, Point(2)), bytes(65_536), bytearray(70_000), "x" * 100_000],
    ids=lambda value: type(value).__name__,
)
def test_values_arrive_as_they_are(value: Any):
    """As an argument, by position and by keyword, and as a result."""
    assert travel(value, name=value) == ((value,), {"name": value})
    assert fetch(value) == value
    assert type(fetch(value)) is type(value)


def test_a_lambda_travels_by_value():
    """Pickle refuses functions without a name to import them by; cloudpickle sends their code."""
    step = 2
    (function,), _ = travel(lambda x: x + step)

    assert function(40) == 42


def test_a_class_of_the_script_travels_by_value(monkeypatch: pytest.MonkeyPatch):
    """In the replica `__main__` is another module: by reference its classes would not be found there."""
    main = sys.modules["__main__"]
    kind = type("FromTheScript", (), {"__module__": "__main__", "answer": lambda self: 42})
    monkeypatch.setattr(main, "FromTheScript", kind, raising=False)
    encoded = codec.encode_arguments((kind(),), {}, Serializer.PICKLE)
    monkeypatch.delattr(main, "FromTheScript")

    (loaded,), _ = codec.decode_arguments(encoded.data, Serializer.PICKLE, encoded.flags, {})
    assert loaded.answer() == 42


def test_an_array_travels_beside_its_pickle():
    """Megabytes of numbers are neither copied into the pickle nor copied out of it."""
    array = np.arange(100_000.0).reshape(1000, 100)
    encoded = codec.encode_arguments((array, {"again": array.T}), {}, Serializer.PICKLE)
    (first, second), _ = codec.decode_arguments(encoded.data, Serializer.PICKLE, encoded.flags, {})

    assert encoded.flags == FLAG_BUFFERS
    np.testing.assert_array_equal(first, array)
    np.testing.assert_array_equal(second["again"], array.T)
    assert np.shares_memory(first, np.frombuffer(encoded.data, np.uint8))


def test_arrays_of_odd_shapes_arrive():
    """Without a contiguous buffer there is nothing to send beside the pickle: it must work all the same."""
    for array in (np.arange(10)[::2], np.zeros((0, 3)), np.array(1.5), np.array(["a", None], dtype=object)):
        np.testing.assert_array_equal(fetch(array), array)


def test_a_response_anywhere_in_the_arguments_is_replaced_by_its_value():
    """In lists, dicts and objects, so that nobody has to await in between."""
    nested = [Reference("r1"), {"b": Point(1, Reference("r2"))}]
    encoded = codec.encode_arguments((Reference("r0"), nested), {"c": Reference("r1")}, Serializer.PICKLE)
    args, kwargs = codec.decode_arguments(encoded.data, Serializer.PICKLE, encoded.flags, {"r0": 0, "r1": 1, "r2": [2]})

    assert encoded.references == ["r0", "r1", "r2"]
    assert (args, kwargs) == ((0, [1, {"b": Point(1, [2])}]), {"c": 1})


def test_a_reference_is_listed_once_though_it_is_pickled_twice():
    """A lambda beside it has all of it pickled again by cloudpickle; waiting twice for one input helps nobody."""
    assert codec.encode_arguments((Reference("r"), lambda: 0), {}, Serializer.PICKLE).references == ["r"]


def test_what_was_noted_does_not_leak_into_the_next_call():
    """A call that waited for another call's inputs would wait for results that it never uses."""
    with pytest.raises(SerializationError):
        codec.encode_arguments((Reference("r"), threading.Lock()), {}, Serializer.PICKLE)
    codec.note_reference("outside of any call")

    assert codec.encode_arguments((1,), {}, Serializer.PICKLE).references == []
    assert codec.resolved_inputs() is None


@pytest.mark.parametrize(
    ("args", "kwargs", "name"),
    [((1, threading.Lock()), {}, "number 2, a lock,"), ((1,), {"guard": threading.Lock()}, "'guard', a lock,")],
    ids=["by position", "by keyword"],
)
def test_an_argument_that_cannot_travel_is_named(args: tuple[Any, ...], kwargs: dict[str, Any], name: str):
    """Of ten arguments the caller learns which one to change."""
    with pytest.raises(SerializationError, match=f"The argument {name} cannot be pickled: .*Pass plain data"):
        codec.encode_arguments(args, kwargs, Serializer.PICKLE)


def test_a_result_that_cannot_travel_is_named_by_its_type():
    """The replica cannot show the value, but it can say what it is."""
    with pytest.raises(SerializationError, match="The result, a lock, cannot be pickled"):
        codec.encode_result(CALL_ID, threading.Lock(), Serializer.PICKLE)


def test_json_travels_as_plain_text():
    """Programs in other languages write and read it; nothing in it can run code."""
    encoded = codec.encode_arguments((1, "é"), {"deep": [None, True]}, Serializer.JSON)

    assert json.loads(encoded.data) == {"args": [1, "é"], "kwargs": {"deep": [None, True]}}
    assert codec.decode_arguments(encoded.data, Serializer.JSON, 0, {}) == ((1, "é"), {"deep": [None, True]})
    assert fetch({"a": [1.5]}, Serializer.JSON) == {"a": [1.5]}


def test_json_names_the_argument_that_it_has_no_form_for():
    """As pickle does: the caller learns which one to change."""
    with pytest.raises(
        SerializationError, match=r"The argument 'when', a set, cannot be sent as JSON: JSON has no form"
    ):
        codec.encode_arguments((1,), {"when": {1}}, Serializer.JSON)
    with pytest.raises(SerializationError, match="JSON has no form for this value"):
        codec.encode_result(CALL_ID, {1}, Serializer.JSON)


def test_a_payload_over_the_limit_is_refused_with_both_sizes():
    """The limit protects the server that all share; the message says by how much, and what to do instead."""
    codec.check_size("The call 'Echo.put'", 2**20, 2**20)
    with pytest.raises(
        PayloadTooLarge, match=r"'Echo.put' has 1,048,577 bytes; the limit is 1,048,576 for one call or"
    ):
        codec.check_size("The call 'Echo.put'", 2**20 + 1, 2**20)


@pytest.mark.parametrize("size", [64 * 2**20, 2**32], ids=["over the limit", "over 32 bits"])
def test_large_buffers_are_refused_before_they_are_copied(tmp_path: Path, size: int):
    """Four gigabytes do not fit into the frame's length; the caller learns of the limit, not of struct.error."""
    with (tmp_path / "hole").open("wb+") as file:  # takes neither disk nor memory as long as nobody reads it
        file.truncate(size)
        buffer = pickle.PickleBuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
    with pytest.raises(PayloadTooLarge, match="the limit is 67,108,864 for one call or reply"):
        codec.encode_arguments((buffer,), {}, Serializer.PICKLE)
    with pytest.raises(PayloadTooLarge, match="the limit is 67,108,864 for one call or reply"):
        codec.encode_result(CALL_ID, buffer, Serializer.PICKLE)


def test_a_result_says_that_it_is_one():
    """The outcome stands outside of the payload, so that a status can be told without loading a pickle."""
    reply = codec.encode_result(CALL_ID, 1, Serializer.PICKLE)

    assert isinstance(reply, Reply)
    assert (reply.call_id, reply.outcome) == (CALL_ID, Outcome.DONE)
