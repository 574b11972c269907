"""A server that takes connections and then refuses to serve, as Redis does while it loads its data."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import hiredis

_ANSWERS = {b"SUBSCRIBE": b"*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n", b"MGET": b"*1\r\n$-1\r\n"}


class RefusingServer:
    """Answers scripts with `refusal`; with what `put` returns once that is empty. `connected_at`: the loop's times."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.refusal = b"-LOADING Redis is loading the dataset in memory\r\n"
        self.connected_at: list[float] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connected_at.append(asyncio.get_running_loop().time())
        self._writers.append(writer)
        commands = hiredis.Reader()
        while chunk := await reader.read(64 * 1024):
            commands.feed(chunk)
            while (command := commands.gets()) is not False:
                name = bytes(command[0]).upper()
                is_script = name in (b"EVALSHA", b"EVAL")
                writer.write((self.refusal or b"*2\r\n:1\r\n:0\r\n") if is_script else _ANSWERS.get(name, b"+OK\r\n"))
        writer.close()

    def leave(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def refusing_server() -> AsyncIterator[RefusingServer]:
    """A server on a socket of its own."""
    with tempfile.TemporaryDirectory() as folder:
        refusing = RefusingServer(str(Path(folder) / "refusing.sock"))
        server = await asyncio.start_unix_server(refusing.serve, refusing.path)
        try:
            yield refusing
        finally:
            refusing.leave()
            server.close()
            await server.wait_closed()
