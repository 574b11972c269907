"""Runs one call: arguments in, reply out. Async methods on the loop, sync ones in threads; no Redis here."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from qserve.context import CallContext, current_call
from qserve.replica.load import Servable
from qserve.store.calls import Entry
from qserve.wire import codec
from qserve.wire.messages import Call, Reply


@dataclass(frozen=True, slots=True)
class Job:
    """A call that a replica has taken: where it stands, and the values of the responses among its arguments."""

    entry: Entry
    call: Call
    context: CallContext
    inputs: Mapping[str, Any] = field(default_factory=dict)


class Executor:
    """Runs jobs on the current event loop; `on_done(job, reply)` is called on it for each, whatever happens.

    threads  how many sync methods may run at a time
    """

    def __init__(self, servable: Servable, threads: int, on_done: Callable[[Job, Reply], None]) -> None:
        self._servable = servable
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._pool = _threads(threads)
        self._tasks: set[asyncio.Task[None]] = set()
        self._returned: deque[tuple[Job, Reply]] = deque()
        self._noticed = False

    def start(self, job: Job) -> None:
        """Run the job, now; the caller has counted the slots."""
        try:
            method, is_async = self._servable.method(job.call.method)
        except Exception as error:  # noqa: BLE001 (looking a method up may run user code; the caller gets its error)
            # Not from within: `on_done` starts the next job, and hundreds of these in a row would nest as deep.
            self._loop.call_soon(self._on_done, job, codec.encode_error(job.call.call_id, error, job.call.serializer))
            return
        if is_async:
            task = self._loop.create_task(self._run_async(job, method))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._pool.submit(contextvars.copy_context().run, self._run_in_thread, job, method)

    def resize(self, threads: int) -> None:
        """Let so many sync methods run at a time from now on. Those that run go on in the threads that they have."""
        before, self._pool = self._pool, _threads(threads)
        before.shutdown(wait=False)

    def close(self) -> None:
        """Cancel what runs; a thread cannot be interrupted, its reply is dropped."""
        for task in self._tasks:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run_async(self, job: Job, method: Callable[..., Any]) -> None:
        current_call.set(job.context)
        try:
            args, kwargs = _arguments(job)
            reply = _encode(job, await method(*args, **kwargs))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            reply = codec.encode_error(job.call.call_id, error, job.call.serializer)
        except BaseException as error:  # noqa: BLE001 (whatever user code raises is the caller's answer)
            reply = codec.encode_error(job.call.call_id, error, job.call.serializer)
        self._on_done(job, reply)

    def _run_in_thread(self, job: Job, method: Callable[..., Any]) -> None:
        current_call.set(job.context)
        try:
            args, kwargs = _arguments(job)
            reply = _encode(job, method(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 (whatever user code raises is the caller's answer)
            reply = codec.encode_error(job.call.call_id, error, job.call.serializer)
        self._returned.append((job, reply))
        if not self._noticed:
            self._noticed = True
            self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._noticed = False
        while self._returned:
            self._on_done(*self._returned.popleft())


def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="qserve-call")


def _arguments(job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
    call = job.call
    return codec.decode_arguments(call.payload, call.serializer, call.flags, job.inputs)


def _encode(job: Job, value: Any) -> Reply:
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        raise TypeError(
            f"Method {job.call.method!r} returned a generator. A call has one result: return a list, "
            "or make one call per item."
        )
    what = f"The result of {job.call.method!r}"
    return codec.encode_result(job.call.call_id, value, job.call.serializer, what)
