"""Commands as bytes on the wire: hiredis packs them, but leaves large arguments to us, which it would copy twice."""

from __future__ import annotations

from collections.abc import Sequence

import hiredis

Argument = str | bytes | int | float
Frames = list[bytes]

# From this size on, copying costs more than one more write.
LARGE = 128 * 1024


def pack(parts: Sequence[Argument]) -> Frames:
    """One command, in pieces that are to be written one after the other; large arguments are pieces of their own."""
    if any(type(part) is bytes and len(part) >= LARGE for part in parts):
        return _pack_large(parts)
    return [hiredis.pack_command(tuple(parts))]  # type: ignore[arg-type] # its stub knows tuples of one element only


def _pack_large(parts: Sequence[Argument]) -> Frames:
    frames: Frames = []
    small = bytearray(b"*%d\r\n" % len(parts))
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        small += b"$%d\r\n" % len(raw)
        if len(raw) >= LARGE:
            frames += (bytes(small), raw)
            small = bytearray()
        else:
            small += raw
        small += b"\r\n"
    frames.append(bytes(small))
    return frames
