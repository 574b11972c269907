"""The Lua scripts: one file, one atomic operation. Sent by EVALSHA; a server that lost them is sent the source."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

_FOLDER = Path(__file__).with_name("lua")


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua file and the name that the server knows it by."""

    name: str
    source: bytes
    sha: bytes


def _read(name: str) -> Script:
    source = (_FOLDER / f"{name}.lua").read_bytes()
    return Script(name, source, sha1(source, usedforsecurity=False).hexdigest().encode())


PUT = _read("put")
FINISH = _read("finish")
PENDING = _read("pending")
HAND_BACK = _read("hand_back")
QUARANTINE = _read("quarantine")
WATCH = _read("watch")
REAP = _read("reap")
RETIRE = _read("retire")
LEAD = _read("lead")
RESIGN = _read("resign")
WRITE = _read("write")
DELAY = _read("delay")
RELEASE = _read("release")
CALL_OFF = _read("call_off")
WANT = _read("want")
DROP = _read("drop")
OPEN = _read("open")
SLEEP = _read("sleep")
DEPTH = _read("depth")
