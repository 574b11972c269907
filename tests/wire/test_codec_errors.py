"""Exceptions travel as themselves, with the remote traceback beside them; where they cannot, as much of them as can."""

import pickle
import threading
import traceback
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from qserve.errors import MethodNotFound, RemoteError, RemoteTraceback
from qserve.wire import codec
from qserve.wire.messages import Outcome, Serializer

CALL_ID = bytes(16)


class WithFacts(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(code)
        self.hint = hint

    def __reduce__(self):
        return (_with_facts, (self.args[0], self.hint))


def _with_facts(code: int, hint: str) -> WithFacts:
    return WithFacts(code, hint=hint)


class KeywordOnly(BaseException):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class TwoArguments(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("I have no text")


class Sealed(Exception):
    """As frozen classes do, it lets nobody set an attribute."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Liar(Exception):
    def __reduce__(self):
        return (str, ("not an exception",))


def raised(error: BaseException) -> BaseException:
    """The exception with the traceback of having been raised."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def remote(error: BaseException, serializer: int = Serializer.PICKLE) -> BaseException:
    """The exception as the caller catches it, when a replica's code raised `error`."""
    reply = codec.encode_error(CALL_ID, raised(error), serializer)
    with pytest.raises(BaseException) as arrived:  # noqa: PT011 (any exception may arrive; the tests look closely)
        codec.decode_reply(reply)
    return arrived.value


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no", 7),
        KeyError("key"),
        OSError(2, "gone", "file"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
        StopIteration(1),
        ExceptionGroup("both", [ValueError("one"), KeyError("two")]),
        KeyboardInterrupt(),
        SystemExit(3),
        MethodNotFound("no such method"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_original_exception_arrives(error: BaseException):
    """`except ValueError` around an await works as around a local call."""
    arrived = remote(error)

    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert repr(arrived.args) == repr(error.args)


def test_what_an_exception_knows_arrives_with_it():
    """Handlers look at attributes: an error code, a hint, an array of the rows that were wrong."""
    arrived = remote(WithFacts(41, hint="turn it on"))
    assert isinstance(arrived, WithFacts)
    assert (arrived.args, arrived.hint) == ((41,), "turn it on")

    rows = remote(ValueError("rows", np.arange(3))).args[1]
    np.testing.assert_array_equal(rows, [0, 1, 2])


def test_the_remote_traceback_is_the_cause():
    """The line that failed stands in the replica: a log of the caller must show it."""
    arrived = remote(ValueError("no"))
    shown = "".join(traceback.format_exception(arrived))

    assert isinstance(arrived.__cause__, RemoteTraceback)
    assert "raise error" in str(arrived.__cause__)
    assert "ValueError: no" in arrived.traceback_str
    assert shown.index("raise error") < shown.index("ValueError: no")


def test_the_remote_traceback_is_also_a_note():
    """Tools that show an exception without its cause show its notes; the user's own notes stay."""
    error = ValueError("no")
    error.add_note("tray 2")
    tray, ours = remote(error).__notes__

    assert tray == "tray 2"
    assert ours.startswith("Remote traceback:\n")
    assert "raise error" in ours


def test_a_traceback_does_not_double_with_each_hop():
    """Through five deployments that call each other the text would otherwise be thirty times as long as it need be."""
    error: BaseException = ValueError("no")
    lengths = []
    for _ in range(5):
        error = remote(error)
        assert len(error.__notes__) == 1
        lengths.append(len(str(error.__cause__)))

    steps = [later - earlier for earlier, later in pairwise(lengths)]
    assert max(steps) < 1.5 * min(steps)


@pytest.mark.parametrize(
    ("error", "name", "text"),
    [
        (KeywordOnly(code=1), "KeywordOnly", "code 1"),
        (TwoArguments(1, 2), "TwoArguments", "1 and 2"),
        (Frozen(7), "Frozen", "7"),
        (Liar("x"), "Liar", "x"),
        (ValueError(threading.Lock()), "ValueError", "<unlocked _thread.lock object at"),
        (Mute(threading.Lock()), "Mute", "<its text cannot be shown: ValueError>"),
    ],
    ids=["keyword only", "two arguments", "frozen", "no exception", "no pickle", "no text"],
)
def test_what_cannot_be_rebuilt_arrives_as_a_remote_error(error: BaseException, name: str, text: str):
    """Its class is named, its text and traceback are kept: nothing is lost but the object."""
    arrived = remote(error)

    assert isinstance(arrived, RemoteError)
    assert arrived.class_name.endswith(name)
    assert str(arrived).startswith(f"{arrived.class_name}: {text}")
    assert "raise error" in arrived.traceback_str
    assert isinstance(arrived.__cause__, RemoteTraceback)


def test_a_class_that_the_caller_lacks_arrives_as_a_remote_error(monkeypatch: pytest.MonkeyPatch):
    """A web backend need not install the model's library to be told what it raised."""
    reply = codec.encode_error(CALL_ID, WithFacts(41, hint=""), Serializer.PICKLE)
    monkeypatch.delattr(f"{__name__}._with_facts")

    arrived = codec.rebuild_error(reply)
    assert isinstance(arrived, RemoteError)
    assert arrived.class_name == f"{__name__}.WithFacts"


def test_an_exception_without_a_text_does_not_break_its_reply():
    """The call would otherwise have no answer at all, because of a bug in an error's `__str__`."""
    assert type(remote(Mute())) is Mute


def test_an_exception_that_cannot_be_changed_arrives():
    """Its class refuses attributes; that must not replace the user's error by ours."""
    arrived = remote(Sealed("no"))

    assert type(arrived) is Sealed
    assert isinstance(arrived.__cause__, RemoteTraceback)


def test_a_class_made_in_a_function_arrives_by_value():
    """It has no name to import it by."""

    class Local(Exception):
        pass

    assert type(remote(Local("x"))).__name__ == "Local"


def test_the_exception_in_the_replica_is_left_as_it_was():
    """A class may keep and raise one exception object for ever: sending it must not strip its traceback."""
    error = raised(ValueError("no"))
    codec.encode_error(CALL_ID, error, Serializer.PICKLE)

    assert error.__traceback__ is not None


def test_json_carries_class_text_and_traceback():
    """A caller in another language gets all there is to know, and nothing that has to be unpickled."""
    arrived = remote(KeyError("key"), Serializer.JSON)

    assert isinstance(arrived, RemoteError)
    assert (arrived.class_name, str(arrived)) == ("KeyError", "KeyError: 'key'")
    assert "raise error" in arrived.traceback_str


def test_an_error_of_ours_needs_no_traceback():
    """A refusal was never raised in user code: there is no line to show."""
    reply = codec.encode_error(CALL_ID, MethodNotFound("no such method"), Serializer.PICKLE, Outcome.DEAD)
    arrived = codec.rebuild_error(reply)

    assert reply.outcome == Outcome.DEAD
    assert (type(arrived), arrived.__cause__) == (MethodNotFound, None)
    assert not hasattr(arrived, "__notes__")


def test_a_remote_error_can_be_sent_on():
    """It passes through the deployments that composed the call, and through process pools."""
    error = RemoteError("pkg.Odd: no", "pkg.Odd", "Traceback ...")
    for copy in (remote(error), pickle.loads(pickle.dumps(error))):
        assert isinstance(copy, RemoteError)
        assert (str(copy), copy.class_name, copy.traceback_str) == ("pkg.Odd: no", "pkg.Odd", "Traceback ...")
