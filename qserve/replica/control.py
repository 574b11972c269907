"""A replica's socket to its worker: JSON lines, both ways. End of file means that the worker is gone."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import traceback
from typing import Any

from qserve.config import MAX_CONTROL_BYTES

# A line has a limit, and user code may raise an error of any length; what matters stands at the end.
_LONGEST_TEXT = 256 * 1024


class Control:
    """The socket, with a line read and a line told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # Else a flush would return with the end of a long line still here, and the process ends after it.
        writer.transport.set_write_buffer_limits(high=0)

    @classmethod
    async def open(cls, fd: int) -> Control:
        """Take over the socket that was inherited as `fd`."""
        os.set_inheritable(fd, False)  # noqa: FBT003 (positional only): programs that user code starts have no business with it
        return cls(*await asyncio.open_connection(sock=socket.socket(fileno=fd), limit=MAX_CONTROL_BYTES))

    async def read(self) -> dict[str, Any] | None:
        """The next message; None when the worker is gone."""
        line = await self._reader.readline()
        message: dict[str, Any] | None = json.loads(line) if line else None
        return message

    def tell(self, **message: Any) -> None:
        """Send a message to the worker."""
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def flush(self) -> None:
        """Wait until what was told has left."""
        await self._writer.drain()


def error_text() -> str:
    """The error that is being handled with its traceback, for the worker to show."""
    text = traceback.format_exc()[-_LONGEST_TEXT:]
    return text.encode(errors="backslashreplace").decode()  # a file name may hold what is no text
