"""The worker of the bare loop: `python -m tests.bench.systems.bare_loop.worker URL`."""

import asyncio
import contextlib
import sys
from typing import Any

from tests.bench.systems.bare_loop.link import CALL_TIMEOUT_S, GROUP, INBOX, QUEUE, Link, seal, unseal

_READ_AHEAD = 100


class Worker:
    """Reads a batch and runs each call in a task, as any worker of async methods must; answers in batches."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: list[bytes] = []
        self._running: set[asyncio.Task[None]] = set()
        self._calls: Link | None = None
        self._replies: Link | None = None

    async def run(self, url: str) -> None:
        """Serve until killed."""
        self._replies = await Link.connect(url, _ignore)
        self._calls = await Link.connect(url, self._take)
        self._read()
        await asyncio.Event().wait()

    def _read(self) -> None:
        assert self._calls is not None
        self._calls.send(
            *(b"XREADGROUP", b"GROUP", GROUP, b"one", b"COUNT", _READ_AHEAD, b"BLOCK", 5000, b"STREAMS", QUEUE, b">")
        )

    def _take(self, reply: Any) -> None:
        self._read()
        for _, entries in reply or ():
            for entry_id, (_, envelope) in entries:
                call_id, argument = unseal(envelope)
                task = self._loop.create_task(self._run(entry_id, call_id, argument))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _run(self, entry_id: bytes, call_id: bytes, argument: object) -> None:
        deadline = self._loop.call_later(CALL_TIMEOUT_S, _ignore, None)
        self._finish(entry_id, call_id, await _echo(argument))
        deadline.cancel()

    def _finish(self, entry_id: bytes, call_id: bytes, value: object) -> None:
        assert self._replies is not None
        envelope = seal(call_id, value)
        self._replies.send(b"SET", b"bare:reply:" + call_id, envelope, b"EX", 60)
        self._replies.send(b"PUBLISH", INBOX, envelope)
        if not self._done:
            self._loop.call_soon(self._settle)
        self._done.append(entry_id)

    def _settle(self) -> None:
        assert self._replies is not None
        self._replies.send(b"XACK", QUEUE, GROUP, *self._done)
        self._replies.send(b"XDEL", QUEUE, *self._done)
        self._done.clear()


async def _echo(argument: object) -> object:
    return argument


def _ignore(_reply: object) -> None:
    return


async def _main() -> None:
    await Worker().run(sys.argv[1])


if __name__ == "__main__":
    # The faster event loop where it is installed, as in a worker of qserve.
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(_main())
