"""The user's class, from the code in the store to a built instance with callable methods."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from qserve.client.handle import DeploymentHandle
from qserve.errors import MethodNotFound, QserveError, SerializationError
from qserve.graph import load_code


class Servable:
    """A built instance, or a function. `method` finds what a call names."""

    def __init__(self, target: Any, *, is_function: bool) -> None:
        self.target = target
        self._is_function = is_function
        self._methods: dict[str, tuple[Callable[..., Any], bool]] = {}

    def method(self, name: str) -> tuple[Callable[..., Any], bool]:
        """The callable, and whether it is a coroutine function. Raises MethodNotFound with the methods there are."""
        known = self._methods.get(name)
        if known is None:
            found = self._find(name)
            known = self._methods[name] = (found, _is_async(found))
        return known

    def _find(self, name: str) -> Callable[..., Any]:
        if self._is_function:
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

    async def reconfigure(self, user_config: Any) -> None:
        """Give the instance its `user_config`. Raises QserveError when its class has no `reconfigure`."""
        if user_config is None:
            return
        hook = getattr(self.target, "reconfigure", None)
        if hook is None:
            raise QserveError(f"user_config is set, but {type(self.target).__name__!r} has no method reconfigure().")
        await _maybe_await(hook(user_config))

    async def finalize(self) -> None:
        """Run the class's `__del__`; the process ends right after, so that it does not run twice."""
        hook = getattr(type(self.target), "__del__", None)
        if hook is not None and not self._is_function:
            await _maybe_await(hook(self.target))


async def build(code: bytes, user_config: Any, limits: Mapping[str, int]) -> Servable:
    """Unpickle verified code and construct the instance. Raises what the user's code raises.

    limits  max_queued_requests of the deployments of this application, for the handles among the arguments
    """

    def make_handle(app: str, name: str) -> DeploymentHandle[Any]:
        return DeploymentHandle(name, app, max_queued_requests=limits.get(name, -1))

    try:
        target, args, kwargs = load_code(code, make_handle)
    except Exception as error:
        raise SerializationError(
            f"The deployment's code cannot be loaded on this host: {error}. Install the module that defines it here, "
            "in the same version, or define the class in the script that deploys it."
        ) from error
    if not isinstance(target, type):
        return Servable(target, is_function=True)
    servable = Servable(await _construct(target, args, kwargs), is_function=False)
    await servable.reconfigure(user_config)
    return servable


async def _construct(kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An instance of the class. Calling a class refuses an async `__init__`, so that one is made in two steps."""
    if not inspect.iscoroutinefunction(kind.__init__):
        return kind(*args, **kwargs)
    # object's own __new__ takes no arguments.
    instance = kind.__new__(kind) if kind.__new__ is object.__new__ else kind.__new__(kind, *args, **kwargs)
    await kind.__init__(instance, *args, **kwargs)
    return instance


def _is_async(function: Callable[..., Any]) -> bool:
    called = getattr(function, "__call__", None)  # noqa: B004 (asks how it is called, not whether it can be)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


async def _maybe_await(value: Any) -> Any:
    return await value if asyncio.iscoroutine(value) or inspect.isawaitable(value) else value
