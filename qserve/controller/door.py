"""The controller's door: a process with its signals."""

from __future__ import annotations

import os
import secrets
import socket

from qserve.config import Settings
from qserve.controller.loop import Controller
from qserve.doors import keep_running, run_door


def run_autoscaler(settings: Settings) -> int:
    """Control the cluster until TERM, INT or the owner's end. Returns the exit code."""
    return run_door(_main(settings), settings)


async def _main(settings: Settings) -> int:
    controller = Controller(settings, f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}")
    return await keep_running(controller.run(), controller.drain, heartbeat_file=settings.heartbeat_file)
