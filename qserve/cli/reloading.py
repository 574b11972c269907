"""`qserve run --reload`: a round for each change of the files; what serves goes on until the next one does."""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from qserve import api, local
from qserve.cli import show
from qserve.cli.rounds import Round
from qserve.cli.running import Named, builder_arguments, take_down
from qserve.cli.watching import Watch
from qserve.client import portal
from qserve.deploying import files

# Nothing is lost with a round that does not leave by then: what it has deployed goes on in the cluster.
_LEAVE_S = 2.0


@dataclass(frozen=True, slots=True)
class _Changed:
    """Files have changed."""

    paths: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Ended:
    """A round has ended."""

    process: _RoundProcess
    code: int


@dataclass(frozen=True, slots=True)
class _Blind:
    """Changes are no longer seen."""

    error: Exception


_Events = queue.SimpleQueue[_Changed | _Ended | _Blind]


def serve(named: Named, timeout_s: float, others: Sequence[str], *, is_embedded: bool) -> NoReturn:
    """Deploy what is named, again after each change, until a signal; then take down what is ours.

    others  folders to watch beside the one where modules are looked for
    Raises MissingExtra without the package watchfiles; OSError when the system watches no more files.
    """
    builder_arguments(named["source"], named["arguments"])  # no change of a file mends these
    folders = [Path(folder).resolve() for folder in (named["app_dir"], *others)]
    config = Path(named["source"]).absolute() if files.is_config(named["source"]) else None
    events: _Events = queue.SimpleQueue()
    watch = Watch(lambda paths: events.put(_Changed(paths)), lambda error: events.put(_Blind(error)))
    there = set() if is_embedded else set(api.status().applications)
    rounds = _Rounds(Round(named, timeout_s, is_embedded, force=False), events, there)
    sys.path.insert(0, str(folders[0]))  # where the workers of a cluster of our own look, too
    try:
        with watch:
            watch.code(folders)
            if config is not None:
                watch.file(config)
            local.ensure()
            rounds.run()
    except BaseException as error:
        take_down(sorted(rounds.ours), (), error, is_embedded=is_embedded)
        raise


class _Rounds:
    """One round after the other: the next change ends it.

    there  applications that others had deployed before: one is ours when a round of it has come up
    ours   applications to take down at the end
    """

    def __init__(self, first: Round, events: _Events, there: set[str]) -> None:
        self._round = first
        self._events = events
        self._there = there
        self._has_served = False
        self.ours: set[str] = set()

    def run(self) -> NoReturn:
        """Deploy, and again after each change."""
        while True:
            process = _RoundProcess(self._round, self._events)
            try:
                paths, is_up = self._follow(process)
            finally:
                process.end()
                self.ours |= process.apps - self._there
            names = ", ".join(sorted(Path(path).name for path in paths))
            show.line(f"{names} changed: deploying again.")
            # A deployment's version does not cover the modules that its own imports: each of them may be such a one.
            is_code = any(path.endswith(".py") for path in paths)
            self._round = replace(self._round, force=is_code or (self._round.force and not is_up))

    def _follow(self, process: _RoundProcess) -> tuple[frozenset[str], bool]:
        """Wait for the next change. Returns the files, and whether this round had come up before."""
        is_up = False
        while True:
            event = self._events.get()
            if isinstance(event, _Changed):
                return event.paths, is_up
            if isinstance(event, _Blind):
                raise event.error
            if event.process is process:
                is_up = event.code == 0 and process.handles is not None
                if is_up:
                    self._take(process.apps, process.handles or [])
                else:
                    self._say_failed(event.code)

    def _take(self, apps: set[str], handles: Sequence[str]) -> None:
        """These applications run and are ours; those of earlier rounds that are no longer named go."""
        if self._has_served:
            show.line(f"Deployed: {', '.join(handles)}.")
        else:
            show.running(handles, local.write_env_file())
            self._has_served = True
        self._there -= apps
        for name in sorted(self.ours - apps):
            show.line(f"{name!r} is no longer in the config file, and is taken down.")
            api.delete(name, _blocking=False)  # its calls may drain for long; the next change is not to wait
            self.ours.discard(name)
        self.ours |= apps

    def _say_failed(self, code: int) -> None:
        """The round itself has told the error, unless it could not."""
        if code < 0:
            show.line(f"Signal {-code} ended the process that imports the application.")
        show.line(f"{'What served before goes on. ' if self._has_served else ''}Waiting for a change.")


class _RoundProcess:
    """A round in its process; its end is an event.

    handles  of the applications that it deploys; None until they are imported
    """

    def __init__(self, chosen: Round, events: _Events) -> None:
        self.handles: list[str] | None = None
        self._events = events
        self._ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            # -P: this folder is none of those where replicas look, unless --app-dir says so.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "qserve.cli.rounds", str(descriptor), chosen.to_json()],
                stdin=subprocess.DEVNULL,
                env=portal.settings().child_env(),
                pass_fds=[descriptor],
                start_new_session=True,  # Ctrl-C is for this process, which ends the other in order
            )
        self._thread = threading.Thread(target=self._follow, name="round", daemon=True)
        self._thread.start()

    @property
    def apps(self) -> set[str]:
        """Names of the applications that it has begun to deploy, as far as is known."""
        return {handle.partition(".")[0] for handle in self.handles or []}

    def end(self) -> None:
        """End it, wherever it stands. Does nothing when it has ended."""
        try:
            self._process.terminate()
            self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()
            self._process.wait()
            self._thread.join(_LEAVE_S)  # it has read the handles then
            self._ours.close()

    def _follow(self) -> None:
        with self._ours.makefile() as lines:
            for line in lines:
                self.handles = json.loads(line)
        self._events.put(_Ended(self, self._process.wait()))
