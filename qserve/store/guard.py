"""Stands between an embedded broker and its owner.

A process of its own, on the standard library alone: it starts the server, ends it when the owner is gone (however it
went), and removes its folder.

Run as `python -I -S guard.py FOLDER KEEP LOCK SERVER [ARGUMENT ...]`; the owner holds the other end of stdin. KEEP is 1
for a folder that outlives the server; LOCK is the descriptor of the folder's lock, which the owner has taken.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# Workers of the same owner see its end at the same time and still have replies to store.
_GRACE_S = 3.0
_STOP_TIMEOUT_S = 5.0


def main(folder: Path, *, keep: bool, lock: int, command: list[str]) -> int:
    """Guard one server until stdin ends or it dies. Returns its exit code."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    with (folder / "broker.log").open("ab") as log:
        # The server holds the lock too: as long as it lives, no other may start on its socket.
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock],
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (this process has no threads)
        )
    ended = signal.getsignal(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _wait_for_owner(server)
    signal.signal(signal.SIGCHLD, ended)
    code = _stop(server)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _wait_for_owner(server: "subprocess.Popen[bytes]") -> None:
    """Until the owner closes our stdin, or the server ends by itself; `stop` on stdin leaves out the grace."""
    wakeup, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    while server.poll() is None:
        readable, _, _ = select.select([0, wakeup], [], [])
        if wakeup in readable:
            os.read(wakeup, 64)
        if 0 in readable:
            if os.read(0, 16) != b"stop":
                _let_others_leave(server)
            return


def _let_others_leave(server: "subprocess.Popen[bytes]") -> None:
    try:
        server.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        return


def _stop(server: "subprocess.Popen[bytes]") -> int:
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
    return server.wait()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), keep=sys.argv[2] == "1", lock=int(sys.argv[3]), command=sys.argv[4:]))
