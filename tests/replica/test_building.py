"""From code to an instance, and what the class's own hooks may do to the process around it."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
from typing import ClassVar

import cloudpickle
import pytest

from qserve.errors import SerializationError
from qserve.replica.load import Servable, build
from tests.store.until import until


class Hooked:
    """Its hooks say in which thread they run."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def check_health(self) -> None:
        self.threads.append(threading.current_thread())

    def reconfigure(self, config: object) -> None:
        self.threads.append(threading.current_thread())


class Hanging:
    """A check that ends only when it is told to."""

    def __init__(self) -> None:
        self.cancelled = False

    async def check_health(self) -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            self.cancelled = True
            raise


class TimesOut:
    """Its own dependency timed out: that is not the check's limit."""

    async def check_health(self) -> None:
        raise TimeoutError("the database")


class Counted:
    """Counts its ends in a list, which outlasts it."""

    def __init__(self, ends: list[str]) -> None:
        self._ends = ends

    def __del__(self) -> None:
        self._ends.append("end")


class HalfMade:
    """Waits in its constructor for ever."""

    ends: ClassVar[list[str]] = []

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray Serve allows a coroutine here, and so do we
        await asyncio.sleep(600)

    def __del__(self) -> None:
        self.ends.append("end")


async def test_sync_hooks_hold_up_no_calls():
    """A check that asks a slow service would stop everything else in the replica."""
    target = Hooked()
    servable = Servable(target)
    await servable.check_health(1.0)
    await servable.reconfigure({})
    assert threading.main_thread() not in target.threads
    assert len(target.threads) == 2


async def test_a_coroutine_that_hangs_in_a_check_is_cancelled():
    """The next check can find that all is well again."""
    target = Hanging()
    with pytest.raises(TimeoutError, match=r"check_health\(\) had not ended after 0.01 s"):
        await Servable(target).check_health(0.01)
    assert target.cancelled


async def test_a_thread_that_hangs_in_a_check_is_waited_for():
    """It cannot be cancelled: an answer before its end would have the next check run beside it."""
    inside, gate = threading.Event(), threading.Event()

    class Slow:
        def check_health(self) -> None:
            inside.set()
            gate.wait(10)

    checking = asyncio.create_task(Servable(Slow()).check_health(0.001))
    await until(inside.is_set)
    await asyncio.sleep(0.01)  # ten times the limit
    assert not checking.done()
    gate.set()
    await checking


async def test_a_thread_that_hangs_in_the_first_check_fails_the_start():
    """Nobody waits for it: the process ends."""
    gate = threading.Event()

    class Slow:
        def check_health(self) -> None:
            gate.wait(10)

    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        await Servable(Slow()).check_health(0.01, at_start=True)
    gate.set()


async def test_a_timeout_inside_of_a_check_keeps_its_own_words():
    """It says which dependency is slow."""
    with pytest.raises(TimeoutError, match="the database"):
        await Servable(TimesOut()).check_health(10.0)


async def test_del_runs_once():
    """Python would run it again when the process lets go of the instance."""
    ends: list[str] = []
    servable = Servable(Counted(ends))
    await servable.finalize()
    await servable.finalize()
    del servable
    gc.collect()
    assert ends == ["end"]


async def test_an_instance_whose_constructor_is_interrupted_is_ended_too():
    """It may have opened connections before it waited."""
    servable = Servable()
    blob = pickle.dumps((HalfMade, (), {}))
    starting = asyncio.create_task(build(servable, blob, None, {}))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])

    await servable.finalize()
    assert HalfMade.ends == ["end"]


async def test_a_function_has_no_hooks():
    """A function may carry any attributes."""
    servable = Servable(test_a_function_has_no_hooks, is_function=True)
    assert not servable.has_check
    await servable.check_health(1.0)
    await servable.finalize()


async def test_code_that_cannot_be_loaded_names_what_it_needs():
    """The first thing to look for is a module or a version that is missing on this host."""
    with pytest.raises(SerializationError, match=f"this host has version {cloudpickle.__version__}"):
        await build(Servable(), b"cno_such_module\nThing\n.", None, {})
