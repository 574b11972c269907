"""The worker's door: a process with its signals."""

from __future__ import annotations

from qserve.config import Settings
from qserve.doors import keep_running, run_door
from qserve.node.agent import Agent
from qserve.node.resources import describe, offered
from qserve.spec import NodeRecord


def run_worker(settings: Settings, record: NodeRecord | None = None) -> int:
    """Host replicas until TERM, INT or the owner's end. Returns the exit code."""
    return run_door(_main(settings, record or describe(resources=offered())), settings)


async def _main(settings: Settings, record: NodeRecord) -> int:
    agent = Agent(settings, record)
    return await keep_running(agent.run(), agent.drain, at_once=agent.kill_children)
