"""The four families: each says what a caller can do about it, and each error also is what Python calls it."""

import builtins
import inspect
import pickle

import pytest

from qserve import errors, exceptions
from qserve.errors import CallError, QserveError, RefusedError, TransportError, UsageError
from qserve.wire.messages import UnreadableVersion

FAMILIES = {
    UsageError: {
        errors.SerializationError: TypeError,
        errors.PayloadTooLarge: ValueError,
        errors.SettingsError: ValueError,
        errors.ApplicationNotFound: QserveError,
        errors.DeploymentNotFound: KeyError,
        errors.MethodNotFound: QserveError,
        errors.SecretRequired: QserveError,
        errors.MissingExtra: ImportError,
    },
    CallError: {
        errors.RemoteError: QserveError,
        errors.ReplicaDiedError: QserveError,
        errors.CallLost: QserveError,
        errors.CallExpired: QserveError,
        errors.CallRejected: QserveError,
        errors.RequestCancelledError: QserveError,
        errors.ResultTimeout: TimeoutError,
    },
    RefusedError: {
        errors.BackPressureError: QserveError,
        errors.DeploymentUnavailableError: QserveError,
        errors.BrokerInUse: QserveError,
        errors.DeployFailed: RuntimeError,
        errors.DeployTimeout: TimeoutError,
    },
    TransportError: {
        errors.BrokerUnavailable: ConnectionError,
        errors.BrokerRefused: QserveError,
        errors.BrokerDenied: QserveError,
        errors.BrokerBinaryMissing: QserveError,
        errors.SignatureError: QserveError,
        UnreadableVersion: errors.SignatureError,
    },
}
MEMBERS = [(kind, family, base) for family, kinds in FAMILIES.items() for kind, base in kinds.items()]
IDS = [kind.__name__ for kind, _family, _base in MEMBERS]


def made(kind: type[QserveError]) -> QserveError:
    """An error of that class, as the code raises it."""
    return errors.BackPressureError(4, 3, 0.5) if kind is errors.BackPressureError else kind("what happened")


@pytest.mark.parametrize(("kind", "family", "base"), MEMBERS, ids=IDS)
def test_an_error_is_of_one_family(kind: type[QserveError], family: type[QserveError], base: type[Exception]):
    """Mend it, call again, try later, or page someone: a handler that catches a family catches the right ones."""
    assert [other for other in FAMILIES if issubclass(kind, other)] == [family]
    assert issubclass(kind, base)
    assert issubclass(kind, exceptions.RayServeException)


@pytest.mark.parametrize(("kind", "family", "base"), MEMBERS, ids=IDS)
def test_an_error_survives_pickling(kind: type[QserveError], family: type[QserveError], base: type[Exception]):
    """It may be a reply, or cross a process pool of the caller's."""
    error = made(kind)
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is kind
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))


@pytest.mark.parametrize(("kind", "family", "base"), MEMBERS, ids=IDS)
def test_an_error_shows_its_message(kind: type[QserveError], family: type[QserveError], base: type[Exception]):
    """Also those that are KeyErrors, whose text Python would put in quotation marks."""
    assert str(made(kind)).startswith(("what happened", "Request dropped"))


def test_no_error_is_missing_here():
    """A new class belongs to a family, to the tree at the head of its module, and to these tests."""
    there = {kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, BaseException)}
    known = {kind for kind, _family, _base in MEMBERS} | FAMILIES.keys() | {QserveError, errors.RemoteTraceback}

    assert there - known == set()
    assert [
        kind.__name__ for kind in there - {errors.RemoteTraceback} if kind.__name__ not in str(errors.__doc__)
    ] == []


def test_no_error_hides_a_builtin():
    """`except TimeoutError` in a user's module must mean Python's."""
    assert [name for name in vars(errors) if hasattr(builtins, name) and not name.startswith("_")] == []


def test_backpressure_tells_the_numbers():
    """A web server answers with them; the text is Ray Serve's."""
    error = errors.BackPressureError(4, 3, retry_after_s=0.5)

    assert str(error) == "Request dropped due to backpressure (num_queued_requests=4, max_queued_requests=3)."
    assert (error.num_queued_requests, error.max_queued_requests) == (4, 3)
    assert (error.message, error.status_code, error.retry_after_s) == (str(error), 503, 0.5)


def test_rays_names_are_where_rays_users_import_them():
    """`from ray.serve.exceptions import ...` ports by changing the package's name."""
    for name in (
        "RayServeException",
        "BackPressureError",
        "RequestCancelledError",
        "DeploymentUnavailableError",
        "TaskError",
        "ActorDiedError",
    ):
        assert issubclass(getattr(exceptions, name), exceptions.RayServeException)
    assert exceptions.DeploymentUnavailableError("is gone").message == "is gone"
