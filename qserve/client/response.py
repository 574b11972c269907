"""A call's answer: for `await`, `.result()`, asyncio.wait, and as an argument of other calls."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Generator
from typing import Any, Generic, Protocol, TypeVar

from qserve.errors import CallLost, ResultTimeout
from qserve.spec import CallState
from qserve.wire import codec
from qserve.wire.keys import DeploymentKeys, request_id
from qserve.wire.messages import Outcome, Reply

R = TypeVar("R")
Callback = Callable[["DeploymentResponse[Any]"], object]
_state_lock = threading.Lock()
_NOT_DECODED = object()
_STATES = {
    Outcome.DONE: CallState.DONE,
    Outcome.FAILED: CallState.FAILED,
    Outcome.DEAD: CallState.DEAD,
    Outcome.CANCELLED: CallState.CANCELLED,
    Outcome.EXPIRED: CallState.EXPIRED,
}


def _renew_lock() -> None:
    global _state_lock  # noqa: PLW0603 (another thread of the parent may have held it: nobody would let go of it here)
    _state_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class Carrier(Protocol):
    """What a response asks of the core that carries its call."""

    loop: asyncio.AbstractEventLoop
    closed: bool

    def adopt(self, response: DeploymentResponse[Any]) -> None:
        """Carry a response whose own core has ended with its event loop. Thread-safe."""

    def keep(self, response: DeploymentResponse[Any]) -> None:
        """Somebody else may read the record: do not remove it when the reply has come. Thread-safe."""

    def hold(self, response: DeploymentResponse[Any]) -> None:
        """Somebody waits for this delayed call: keep its response until its reply has come. Thread-safe."""

    async def state(self, response: DeploymentResponse[Any]) -> CallState:
        """Where the call stands, asked of Redis; runs on `loop`."""
        ...


class DeploymentResponse(Generic[R]):
    """The answer of one call, now or later.

    Await it, or block on `.result(timeout_s=...)` in a thread; as often as you like, from any loop or thread. Pass it
    to another call without fetching it. It pickles to a reference that any process can fetch from.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_carrier",
        "_exception",
        "_reply",
        "_value",
        "call_id",
        "confirmed",
        "kept",
        "keys",
        "method",
    )

    def __init__(
        self, carrier: Carrier, keys: DeploymentKeys, call_id: bytes, method: str, *, kept: bool = False
    ) -> None:
        self.keys = keys
        self.call_id = call_id
        self.method = method
        self.kept = kept
        self.confirmed = False
        self._carrier = carrier
        self._callbacks: list[Callback] | None = []
        self._reply: Reply | None = None
        self._exception: BaseException | None = None
        self._value: Any = _NOT_DECODED

    # For the core

    def resolve(self, reply: Reply) -> None:
        """The reply has come. It is decoded when somebody fetches it, in the fetching thread."""
        self._settle(reply, None)

    def fail(self, error: BaseException) -> None:
        """There will be no reply."""
        self._settle(None, error)

    def follow(self, other: DeploymentResponse[Any]) -> None:
        """Another response of this same call has its answer: it is ours too."""
        self._settle(other._reply, other._exception if other._reply is None else None)

    def _settle(self, reply: Reply | None, error: BaseException | None) -> None:
        with _state_lock:
            callbacks, self._callbacks = self._callbacks, None
            if callbacks is None:
                return
            self._reply, self._exception = reply, error
        for callback in callbacks:
            callback(self)

    def envelope(self) -> bytes | None:
        """The reply's envelope as it came; None while there is none."""
        reply = self._reply
        if reply is None or not isinstance(reply.payload, memoryview):
            return None
        return bytes(reply.payload.obj)

    # For users

    @property
    def request_id(self) -> str:
        """The id for `serve.get_response(request_id)` in any process. Reading it keeps the result in Redis."""
        self._reach().keep(self)
        return request_id(self.keys.app, self.keys.deployment, self.call_id)

    def done(self) -> bool:
        """Whether the reply, or the error, is here."""
        return self._callbacks is None

    def cancelled(self) -> bool:
        """Whether the call was cancelled. Always False: calls can't be cancelled yet."""
        return False

    def exception(self) -> BaseException | None:
        """The call's exception, None when it succeeded. Raises asyncio.InvalidStateError while there is no reply."""
        if not self.done():
            raise asyncio.InvalidStateError("The call has no reply yet.")
        self._decode()
        return self._exception

    def result(self, *, timeout_s: float | None = None) -> R:
        """Block until the reply is here and return it, or raise what the call raised.

        timeout_s  None waits for ever, 0 looks once; over it ResultTimeout (a TimeoutError), and the call goes on:
                   call result() again, or fetch it elsewhere by `serve.get_response(response.request_id)`
        Raises RuntimeError inside a running event loop, which it would block.
        """
        if not self.done():
            _refuse_in_loop()
            self._wait(timeout_s)
        return self._outcome()

    def __await__(self) -> Generator[Any, None, R]:
        if not self.done():
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            waker = _waker(future, loop, self._reach().loop)
            self.when_done(waker)
            try:
                yield from future.__await__()
            finally:
                if not self.done():
                    self.remove_done_callback(waker)
        return self._outcome()

    async def status_async(self) -> CallState:
        """Where the call stands now, also while it waits or runs; for code on an event loop."""
        if (known := self._known_state()) is not None:
            return known
        running, home = asyncio.get_running_loop(), self._reach().loop
        if running is home:
            return await self._carrier.state(self)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._carrier.state(self), home))

    def status(self) -> CallState:
        """Where the call stands: SCHEDULED, QUEUED, RUNNING, DONE, FAILED, DEAD, CANCELLED, EXPIRED or UNKNOWN."""
        if (known := self._known_state()) is not None:
            return known
        _refuse_in_loop()
        return asyncio.run_coroutine_threadsafe(self._reach().state(self), self._carrier.loop).result()

    def add_done_callback(self, callback: Callback, *, context: Any = None) -> None:
        """Call `callback(response)` once the reply is here; on the event loop this was called in, if in one."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.when_done(callback)
        else:
            self.when_done(_Scheduled(callback, loop, context))

    def remove_done_callback(self, callback: Callback) -> int:
        """Forget the callback. Returns how often it was there."""
        with _state_lock:
            if self._callbacks is None:
                return 0
            kept = [known for known in self._callbacks if _original(known) != callback]
            removed = len(self._callbacks) - len(kept)
            self._callbacks = kept
        return removed

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        name = self.request_id
        codec.note_reference(name)
        return (_load, (name,))

    def __repr__(self) -> str:
        state = "done" if self.done() else "pending"
        return f"<DeploymentResponse {self.keys.app}.{self.keys.deployment}.{self.method} {self.call_id.hex()} {state}>"

    def _reach(self) -> Carrier:
        """The core that carries the call; the portal's, when the event loop that made the call has ended."""
        if self._carrier.closed:
            from qserve.client.portal import portal

            self.move_to(portal().core)
        return self._carrier

    def move_to(self, carrier: Carrier) -> None:
        """Have another core fetch the reply: the one that made the call has closed."""
        self._carrier = carrier
        if not self.done():
            carrier.adopt(self)

    def is_awaited(self, *, beyond: asyncio.AbstractEventLoop | None = None) -> bool:
        """Whether anybody waits for the answer.

        beyond  the loop of the call's own core, whose waiters do not count: it ends
        """
        with _state_lock:
            callbacks = list(self._callbacks or ())
        return any(_is_heard(callback, beyond) for callback in callbacks)

    def _known_state(self) -> CallState | None:
        if not self.done():
            return None
        if self._reply is None:
            return CallState.UNKNOWN if isinstance(self._exception, CallLost) else CallState.FAILED
        return _STATES[Outcome(self._reply.outcome)]

    def _outcome(self) -> R:
        if self._value is _NOT_DECODED:
            self._decode()
            if self._exception is not None:
                raise self._exception
        value: R = self._value
        return value

    def _decode(self) -> None:
        """Open the reply, once. A Ctrl-C meanwhile is not what the call raised: the next one to ask opens it again."""
        reply = self._reply
        if reply is None or self._exception is not None or self._value is not _NOT_DECODED:
            return
        try:
            if reply.outcome == Outcome.DONE:
                self._value = codec.decode_reply(reply)
            else:
                self._exception = codec.rebuild_error(reply)
        except Exception as error:  # noqa: BLE001 (loading a value runs user code, which may raise anything)
            self._exception = error

    def when_done(self, callback: Callback) -> None:
        """Call `callback(response)` once, in the thread that resolves the response, or now; it must be quick."""
        with _state_lock:
            is_open = self._callbacks is not None
            if self._callbacks is not None:
                self._callbacks.append(callback)
        if not is_open:
            callback(self)
        elif self._carrier.closed:  # asked after the append: the core looks for waiters after it has closed
            self._reach()

    def _wait(self, timeout_s: float | None) -> None:
        gate = threading.Lock()
        gate.acquire()

        def open_gate(_response: DeploymentResponse[Any]) -> None:
            gate.release()

        self.when_done(open_gate)
        try:
            opened = gate.acquire(timeout=-1 if timeout_s is None else max(timeout_s, 0.0))
        finally:
            if not self.done():
                self.remove_done_callback(open_gate)
        if not opened and not self.done():
            raise ResultTimeout(
                f"No reply from '{self.keys.deployment}.{self.method}' within {timeout_s:g} s. The call goes on: "
                "call result() again, or fetch it later by serve.get_response(response.request_id). "
                "`qserve status` tells whether replicas are ready and how many calls wait."
            )


class _Scheduled:
    """A done-callback that runs on the event loop it was added in."""

    __slots__ = ("callback", "context", "loop")

    def __init__(self, callback: Callback, loop: asyncio.AbstractEventLoop, context: Any) -> None:
        self.callback = callback
        self.loop = loop
        self.context = context

    def __call__(self, response: DeploymentResponse[Any]) -> None:
        try:
            self.loop.call_soon_threadsafe(self.callback, response, context=self.context)
        except RuntimeError:  # that loop is closed: nobody waits there any more
            return


def _original(callback: Callback) -> Callback:
    return callback.callback if isinstance(callback, _Scheduled) else callback


def _waker(future: asyncio.Future[None], loop: asyncio.AbstractEventLoop, home: asyncio.AbstractEventLoop) -> Callback:
    """What wakes one awaiting task: directly on the core's own loop, over the fence on another."""
    wake = _Wake(future)
    if loop is home:
        return wake

    def wake_elsewhere(response: DeploymentResponse[Any]) -> None:
        try:
            loop.call_soon_threadsafe(wake, response)
        except RuntimeError:  # that loop is closed: nobody waits there any more
            return

    return wake_elsewhere


class _Wake:
    """Wakes the task that awaits a response on the loop of its core."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[None]) -> None:
        self._future = future

    def __call__(self, _response: DeploymentResponse[Any]) -> None:
        if not self._future.done():
            self._future.set_result(None)


class Following:
    """Gives another response of the same call the same answer."""

    __slots__ = ("follower",)

    def __init__(self, follower: DeploymentResponse[Any]) -> None:
        self.follower = follower

    def __call__(self, response: DeploymentResponse[Any]) -> None:
        self.follower.follow(response)


def _is_heard(callback: Callback, ending: asyncio.AbstractEventLoop | None) -> bool:
    """Whether somebody is there for the callback when the loop `ending`, its response's own, has ended."""
    if isinstance(callback, _Scheduled):
        return callback.loop is not ending
    if isinstance(callback, _Wake):
        return ending is None
    if isinstance(callback, Following):
        return callback.follower.is_awaited(beyond=ending)
    return True


def _refuse_in_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "Sync methods should not be called from within an `asyncio` event loop. Use `await response` instead."
    )


def _load(name: str) -> Any:
    """What a pickled response becomes: the input's value inside a call, a response to fetch from anywhere else."""
    inputs = codec.resolved_inputs()
    if inputs is not None and name in inputs:
        return inputs[name]
    from qserve.client.portal import get_response

    return get_response(name)
