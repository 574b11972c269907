"""The worker's door: a process with its signals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qserve.config import KEEP_LINES, Settings
from qserve.doors import keep_running, run_door
from qserve.node.agent import Agent
from qserve.node.fixed import FixedApp, FixedHost
from qserve.node.output import LAST_WRITE_S, BoundedWriter
from qserve.spec import NodeRecord


def run_worker(
    settings: Settings,
    record: NodeRecord,
    *,
    log_lines: int = KEEP_LINES,
    fixed: FixedApp | None = None,
) -> int:
    """Host replicas until TERM, INT or the owner's end. Returns the exit code.

    log_lines  about how many lines of each deployment are kept in Redis; 0: none
    fixed      host this by itself, and nothing else
    """
    work = _host(settings, record, log_lines) if fixed is None else _host_fixed(settings, record, log_lines, fixed)
    return run_door(work, settings)


async def _host(settings: Settings, record: NodeRecord, log_lines: int) -> int:
    agent = Agent(settings, record, log_lines=log_lines)
    async with _unhindered_logs():
        return await keep_running(
            agent.run(),
            agent.drain,
            at_once=agent.kill_children,
            heartbeat_file=settings.heartbeat_file,
            is_ready=lambda: agent.has_joined,
        )


async def _host_fixed(settings: Settings, record: NodeRecord, log_lines: int, app: FixedApp) -> int:
    fixed = FixedHost(settings, record, app)
    agent = Agent(settings, record, log_lines=log_lines, own=fixed.specs)

    async def leave() -> None:
        fixed.stop()
        await agent.drain()
        await fixed.close()

    async with _unhindered_logs():
        return await keep_running(
            _work(agent, fixed),
            leave,
            at_once=agent.kill_children,
            heartbeat_file=settings.heartbeat_file,
            is_ready=lambda: agent.has_joined,
        )


async def _work(agent: Agent, fixed: FixedHost) -> None:
    """Host the application until it is not this worker's any more. Then the agent has yet to be drained."""
    await fixed.deploy()
    tasks = [asyncio.create_task(agent.run(), name="agent"), asyncio.create_task(fixed.run(), name="fixed")]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()  # raises what ended it


@asynccontextmanager
async def _unhindered_logs() -> AsyncIterator[None]:
    """Our own log lines go to stderr without waiting for its reader, as the replicas' lines go to stdout."""
    stderr = BoundedWriter(2)
    handlers = [h for h in logging.getLogger("qserve").handlers if isinstance(h, logging.StreamHandler)]
    before = [handler.setStream(stderr) for handler in handlers]
    try:
        yield
    finally:
        await asyncio.to_thread(stderr.settle, LAST_WRITE_S)
        for handler, stream in zip(handlers, before, strict=True):
            handler.setStream(stream)
