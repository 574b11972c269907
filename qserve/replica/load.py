"""The user's class, from the code in the store to a built instance with callable methods."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle

from qserve.client.handle import DeploymentHandle
from qserve.errors import MethodNotFound, QserveError, SerializationError
from qserve.graph import load_code

# Python would run `__del__` once more when the last reference goes.
_finalized: list[Any] = []


class Servable:
    """The instance, or the function; None until `build` has made it. `method` finds what a call names.

    The class's own hooks (`reconfigure`, `check_health`) run on the loop if they are async, and else in threads of
    their own: they hold up no calls, and calls that fill all slots do not hold up them.
    """

    def __init__(self, target: Any = None, *, is_function: bool = False) -> None:
        self.target = target
        self.is_function = is_function
        self._methods: dict[str, tuple[Callable[..., Any], bool]] = {}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="qserve-hook")

    def method(self, name: str) -> tuple[Callable[..., Any], bool]:
        """The callable, and whether it is a coroutine function. Raises MethodNotFound with the methods there are."""
        known = self._methods.get(name)
        if known is None:
            found = self._find(name)
            known = self._methods[name] = (found, _is_async(found))
        return known

    def _find(self, name: str) -> Callable[..., Any]:
        if self.is_function:
            found: Callable[..., Any] = self.target
            return found
        method = getattr(self.target, name, None)
        if not callable(method) or (name.startswith("__") and name != "__call__"):
            raise MethodNotFound(
                f"Tried to call a method {name!r} that does not exist. Available methods: {self.available()}."
            )
        bound: Callable[..., Any] = method
        return bound

    def available(self) -> list[str]:
        """Names of the methods that handles can call."""
        kind = type(self.target)
        names = [n for n in dir(kind) if n == "__call__" or not n.startswith("__")]
        return sorted(n for n in names if callable(getattr(kind, n, None)))

    @property
    def has_check(self) -> bool:
        """Whether the class, or one that it inherits from, defines `check_health`."""
        return not self.is_function and callable(getattr(self.target, "check_health", None))

    async def check_health(self, timeout_s: float, *, at_start: bool = False) -> None:
        """Run the class's own check, if it has one. Raises what it raises, and TimeoutError after `timeout_s`.

        A coroutine is cancelled then. A thread cannot be: it is waited for, so that no two of them run, unless it is
        `at_start`, when the process ends with the error.
        """
        if not self.has_check:
            return
        hook = self.target.check_health
        try:
            async with asyncio.timeout(timeout_s if at_start or _is_async(hook) else None) as limit:
                await self._run(hook)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"check_health() had not ended after {timeout_s:g} s.") from error

    async def reconfigure(self, user_config: Any) -> None:
        """Give the instance its `user_config`. Raises QserveError when its class has no `reconfigure`."""
        if user_config is None:
            return
        hook = getattr(self.target, "reconfigure", None)
        if hook is None:
            raise QserveError(f"user_config is set, but {type(self.target).__name__!r} has no method reconfigure().")
        await self._run(hook, user_config)

    async def finalize(self) -> None:
        """Run the class's `__del__`, once, if there is an instance by now."""
        hook = getattr(type(self.target), "__del__", None)
        if hook is None or self.is_function or any(done is self.target for done in _finalized):
            return
        _finalized.append(self.target)
        await _maybe_await(hook(self.target))

    async def _run(self, hook: Callable[..., Any], *args: Any) -> None:
        if _is_async(hook):
            await hook(*args)
        else:
            running = asyncio.get_running_loop().run_in_executor(self._threads, hook, *args)
            await _maybe_await(await running)


async def build(servable: Servable, code: bytes, user_config: Any, limits: Mapping[str, int]) -> None:
    """Unpickle verified code and construct the instance in `servable`. Raises what the user's code raises.

    limits  max_queued_requests of the deployments of this application, for the handles among the arguments
    """

    def make_handle(app: str, name: str) -> DeploymentHandle[Any]:
        return DeploymentHandle(name, app, max_queued_requests=limits.get(name, -1))

    try:
        target, args, kwargs = load_code(code, make_handle)
    except Exception as error:
        raise SerializationError(
            f"The deployment's code cannot be loaded on this host: {error}. Install the module that defines it here, "
            "in the same version, or define the class in the script that deploys it. Code that travels by value was "
            f"pickled by cloudpickle; this host has version {cloudpickle.__version__} of it."
        ) from error
    if not isinstance(target, type):
        servable.target, servable.is_function = target, True
        return
    await _construct(servable, target, args, kwargs)
    await servable.reconfigure(user_config)


async def _construct(servable: Servable, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Make the instance. Calling a class refuses an async `__init__`, so that one is made in two steps."""
    if not inspect.iscoroutinefunction(kind.__init__):
        servable.target = kind(*args, **kwargs)
        return
    # object's own __new__ takes no arguments.
    instance = kind.__new__(kind) if kind.__new__ is object.__new__ else kind.__new__(kind, *args, **kwargs)
    servable.target = instance  # it is there from now on: who ends its start must end it, too
    await kind.__init__(instance, *args, **kwargs)


def _is_async(function: Callable[..., Any]) -> bool:
    called = getattr(function, "__call__", None)  # noqa: B004 (asks how it is called, not whether it can be)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


async def _maybe_await(value: Any) -> Any:
    return await value if asyncio.iscoroutine(value) or inspect.isawaitable(value) else value
