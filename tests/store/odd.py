"""Servers that do not do what a server should."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from qserve.store.connection import Endpoint

OK = b"+OK\r\n"


class OddServer:
    """Answers the first chunk that it is sent with the first of `answers`, and so on; then it stays silent.

    An answer of None closes the connection.
    """

    def __init__(self, endpoint: Endpoint, answers: Iterable[bytes | None]) -> None:
        self.endpoint = endpoint
        self.heard = b""
        self._answers = iter(answers)
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self._writers.append(writer)
        while chunk := await reader.read(64 * 1024):
            self.heard += chunk
            answer = next(self._answers, b"")
            if answer is None:
                break
            writer.write(answer)
        writer.close()

    def leave(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def odd_server(*answers: bytes | None, path: str = "") -> AsyncIterator[OddServer]:
    """A server on the socket at `path`, or on one of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = path or str(Path(folder) / "odd.sock")
        odd = OddServer(Endpoint(path=path), answers)
        server = await asyncio.start_unix_server(odd.serve, path)
        try:
            yield odd
        finally:
            odd.leave()
            server.close()
            await server.wait_closed()
