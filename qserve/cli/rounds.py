"""One round of `qserve run --reload`: an application imported and deployed by a process of its own.

There no module is an old one, and a round that a newer change has overtaken can be ended wherever it stands. Run with
`python -m qserve.cli.rounds FD ROUND`. FD is a socket: it tells the handles before they are deployed, and its end of
file says that nobody waits for this round any more.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from dataclasses import asdict, dataclass

from qserve import api, logs
from qserve.cli.root import report
from qserve.cli.running import Named, handles_of, load, put_up
from qserve.cli.stopping import stoppable
from qserve.config import Settings

_LEFT_ALONE = 1


@dataclass(frozen=True, slots=True)
class Round:
    """What a round is to deploy.

    named        as it was typed
    is_embedded  the worker is about to join
    force        restart the replicas even if the modules that define them are the same
    """

    named: Named
    timeout_s: float
    is_embedded: bool
    force: bool

    def to_json(self) -> str:
        """For the process's arguments."""
        return json.dumps(asdict(self))

    def deploy(self, parent: socket.socket) -> None:
        """Import, tell the handles, deploy, and wait until it runs."""
        loaded = load(**self.named)
        loaded.say_notes()
        built = api.build(loaded.targets, force=self.force)
        parent.sendall(f"{json.dumps(handles_of(built))}\n".encode())
        put_up(built, self.timeout_s, is_embedded=self.is_embedded)


def main(descriptor: int, text: str) -> int:
    """Run the round that stands in the text. Returns the exit code."""
    parent = socket.socket(fileno=descriptor)
    parent.set_inheritable(False)
    threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    logs.configure(Settings.from_env())
    try:
        with stoppable():
            Round(**json.loads(text)).deploy(parent)
    except BaseException as error:  # noqa: BLE001 (user code may raise anything; the exit code says what it was)
        return report(error)
    return 0


def _end_with(parent: socket.socket) -> None:
    """End this process when the parent has ended, whatever it does."""
    parent.recv(1)  # it never sends anything: this is the end of file
    os._exit(_LEFT_ALONE)


if __name__ == "__main__":
    code = main(int(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads that user code has started must not hold the process
