"""Exceptions: what user code raises is what the caller catches, with the replica's traceback beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import traceback

import pytest

import qserve as serve
from qserve.errors import MethodNotFound, SerializationError
from qserve.exceptions import RayServeException, RemoteError
from tests.support.cluster import ROOT


class OutOfPaper(Exception):
    """An exception of the application's own, with facts on it."""

    def __init__(self, tray: int, *, sheets: int = 0) -> None:
        super().__init__(f"tray {tray} has {sheets} sheets")
        self.tray = tray
        self.sheets = sheets

    def __reduce__(self):
        return (_rebuild, (self.tray, self.sheets))


def _rebuild(tray: int, sheets: int) -> OutOfPaper:
    return OutOfPaper(tray, sheets=sheets)


class Careless(Exception):
    """Pickles, but cannot be rebuilt: its constructor wants more than its `args` hold."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


@serve.deployment
class Printer:
    def fails(self) -> None:
        raise ValueError("no ink")

    async def fails_async(self) -> None:
        raise ValueError("no ink, asynchronously")

    def out_of_paper(self) -> None:
        raise OutOfPaper(2, sheets=0)

    def raises_from(self) -> None:
        try:
            self.fails()
        except ValueError as error:
            raise RuntimeError("cannot print") from error

    def raises_unpicklable(self) -> None:
        error = ValueError("held a lock")
        error.add_note("and an attribute")
        vars(error)["lock"] = threading.Lock()
        raise error

    def raises_careless(self) -> None:
        raise Careless(1, 2)

    def raises_group(self) -> None:
        raise ExceptionGroup("two pages", [ValueError("first"), OutOfPaper(1)])

    def exits(self) -> None:
        sys.exit(3)

    def returns_unpicklable(self) -> object:
        return threading.Lock()

    def stops(self) -> None:
        raise StopIteration(5)

    async def stops_async(self) -> None:
        raise StopAsyncIteration

    def pid(self) -> int:
        return os.getpid()

    def one_argument(self, page: int) -> int:
        return page

    def _internal(self) -> str:
        return "internal"


@pytest.fixture(scope="module")
def printer(cluster):
    """A deployment that can fail in every way."""
    return serve.run(Printer.bind(), name="printer")


def error_of(response) -> BaseException:
    """What fetching the response raises."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 (the caller looks at it)
        response.result(timeout_s=5)
    return caught.value


async def test_the_original_exception_is_caught_by_its_class(printer):
    """`except ValueError` around the call works as around the method itself."""
    with pytest.raises(ValueError, match="no ink"):
        await printer.fails.remote()
    with pytest.raises(ValueError, match="no ink, asynchronously"):
        await printer.fails_async.remote()


def test_an_exception_of_ones_own_arrives_with_its_attributes(printer):
    """Handlers read facts off the exception; they must have come along."""
    error = error_of(printer.out_of_paper.remote())

    assert type(error) is OutOfPaper
    assert (error.tray, error.sheets) == (2, 0)


def test_the_remote_traceback_is_the_cause(printer):
    """The console shows where it went wrong in the replica, and where it was fetched."""
    error = error_of(printer.fails.remote())
    shown = "".join(traceback.format_exception(error))

    assert error.__cause__ is not None
    assert 'raise ValueError("no ink")' in str(error.__cause__)
    assert "in fails" in shown
    assert "The above exception was the direct cause" in shown


def test_the_remote_traceback_is_in_a_note_and_in_traceback_str(printer):
    """Loggers that show notes, and code that stores text, have it without looking for a cause."""
    error = error_of(printer.fails.remote())

    assert "in fails" in error.__notes__[0]
    assert "in fails" in vars(error)["traceback_str"]


def test_the_causes_of_the_exception_are_in_its_traceback(printer):
    """`raise ... from` was written for whoever reads the log."""
    error = error_of(printer.raises_from.remote())

    assert isinstance(error, RuntimeError)
    assert "ValueError: no ink" in str(error.__cause__)


def test_it_is_raised_on_each_fetch_and_does_not_grow(printer):
    """Fetching twice must not lose the error, nor pile up notes."""
    response = printer.fails.remote()
    first, second = error_of(response), error_of(response)

    assert isinstance(second, ValueError)
    assert len(second.__notes__) == len(first.__notes__) == 1


@pytest.mark.parametrize(("method", "name"), [("raises_unpicklable", "ValueError"), ("raises_careless", "Careless")])
def test_an_exception_that_cannot_travel_arrives_as_remote_error(printer, method, name):
    """A lock on an exception, or a constructor that cannot be repeated, must not hide what happened."""
    error = error_of(printer.options(method_name=method).remote())

    assert isinstance(error, RemoteError)
    assert error.class_name.endswith(name)
    assert f"in {method}" in error.traceback_str
    assert ("held a lock" in str(error)) or ("1 and 2" in str(error))


def test_a_group_of_exceptions_arrives_as_a_group(printer):
    """`except*` works across the wire."""
    error = error_of(printer.raises_group.remote())

    assert isinstance(error, ExceptionGroup)
    assert [type(inner) for inner in error.exceptions] == [ValueError, OutOfPaper]


def test_sys_exit_in_a_method_is_an_answer_and_not_the_end_of_the_replica(printer):
    """Library code that calls sys.exit() must not take the other calls down."""
    pid = printer.pid.remote().result(timeout_s=5)

    assert isinstance(error_of(printer.exits.remote()), SystemExit)
    assert printer.pid.remote().result(timeout_s=5) == pid


@pytest.mark.parametrize("method", ["stops", "stops_async"])
async def test_stop_iteration_does_not_vanish_in_the_event_loop(printer, method):
    """Python gives these a meaning of their own inside coroutines: the await must end, and with an error."""
    with pytest.raises((StopIteration, StopAsyncIteration, RuntimeError)):
        await printer.options(method_name=method).remote()


def test_a_result_that_cannot_travel_is_an_error_that_names_it(printer):
    """The method has run; its caller must hear why there is no value."""
    error = error_of(printer.returns_unpicklable.remote())

    assert isinstance(error, SerializationError)
    assert "The result, a lock, cannot be pickled" in str(error)


def test_wrong_arguments_raise_pythons_own_type_error(printer):
    """The message that everybody knows, from Python itself."""
    too_many = error_of(printer.one_argument.remote(1, 2))
    unknown = error_of(printer.one_argument.remote(sheet=1))

    assert isinstance(too_many, TypeError)
    assert "takes 2 positional arguments but 3 were given" in str(too_many)
    assert isinstance(unknown, TypeError)
    assert "unexpected keyword argument 'sheet'" in str(unknown)


def test_an_unknown_method_lists_those_there_are(printer):
    """A typing error is found by reading the error, not the source."""
    error = error_of(printer.prnt.remote())

    assert isinstance(error, MethodNotFound)
    assert isinstance(error, RayServeException)
    assert "Tried to call a method 'prnt' that does not exist. Available methods: ['_internal'," in str(error)
    assert "'one_argument'" in str(error)


def test_a_class_without_dunder_call_is_not_callable(printer):
    """`handle.remote()` on a class of named methods says which names there are."""
    error = error_of(printer.remote())

    assert isinstance(error, MethodNotFound)
    assert "'__call__' that does not exist" in str(error)


def test_the_replica_stays_healthy_after_exceptions(printer):
    """An exception is an answer. Nothing restarts."""
    pid = printer.pid.remote().result(timeout_s=5)
    for _ in range(20):
        error_of(printer.fails.remote())

    assert printer.pid.remote().result(timeout_s=5) == pid
    assert serve.status().applications["printer"].status == "RUNNING"


def test_exceptions_of_a_script_keep_their_class(settings, cluster):
    """A script's classes live in `__main__`, another module in the replica; `except Mine` works all the same."""
    script = textwrap.dedent(
        """
        import qserve as serve

        class Mine(Exception):
            def __init__(self, code):
                super().__init__(code)
                self.code = code

        @serve.deployment
        class Raises:
            def __call__(self):
                raise Mine(7)

        handle = serve.run(Raises.bind(), name="script")
        try:
            handle.remote().result(timeout_s=5)
        except Mine as error:
            print("caught", error.code)
        serve.delete("script")
        """
    )
    env = settings.child_env() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=30, check=False
    )

    assert done.stdout == "caught 7\n", done.stderr
