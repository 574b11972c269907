"""Changes of files, as they come. Knows nothing of applications."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qserve.errors import MissingExtra


class Watch:
    """Watches until the block ends, each thing in a thread of its own.

    on_change  called in such a thread, with the absolute paths of files that have changed
    on_error   called there with what has ended it
    Raises MissingExtra without the package watchfiles.
    """

    def __init__(self, on_change: Callable[[frozenset[str]], None], on_error: Callable[[Exception], None]) -> None:
        try:
            import watchfiles
        except ImportError as error:
            raise MissingExtra("--reload needs watchfiles: pip install 'qserve[cli]'") from error
        self._changes = watchfiles.watch
        # What is installed below a folder is none of its code; nor are editors' own files.
        self._is_code = watchfiles.DefaultFilter(ignore_dirs=(*watchfiles.DefaultFilter.ignore_dirs, "site-packages"))
        self._on_change = on_change
        self._on_error = on_error
        self._running: list[tuple[threading.Thread, _Stop]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, stop in self._running:
            stop.set()
        for thread, _ in self._running:
            thread.join()

    def code(self, folders: Sequence[Path]) -> None:
        """Watch the .py files below these folders. When it returns, no change is missed any more."""
        roots = [str(folder) for folder in folders]

        def is_wanted(change: Any, path: str) -> bool:
            below = next((path.removeprefix(root) for root in roots if path.startswith(root)), path)
            return path.endswith(".py") and self._is_code(change, below)

        self._start(roots, is_wanted, is_deep=True)

    def file(self, path: Path) -> None:
        """Watch one file, by its folder: editors put a new file in the place of the old one."""
        self._start([str(path.parent)], lambda _change, changed: changed == str(path), is_deep=False)

    def _start(self, roots: Sequence[str], is_wanted: Callable[[object, str], bool], *, is_deep: bool) -> None:
        stop = _Stop()

        def follow() -> None:
            try:
                for changes in self._changes(*roots, watch_filter=is_wanted, stop_event=stop, recursive=is_deep):
                    self._on_change(frozenset(path for _, path in changes))
            except Exception as error:  # noqa: BLE001 (of whatever kind, the main thread is to raise it)
                self._on_error(error)
            finally:
                stop.has_begun.set()

        thread = threading.Thread(target=follow, name=f"watch {roots[0]}", daemon=True)
        thread.start()
        self._running.append((thread, stop))
        stop.has_begun.wait()


class _Stop(threading.Event):
    """Ends a watch. The watch asks for it again and again: when it has asked once, it sees every change."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = threading.Event()

    def is_set(self) -> bool:
        self.has_begun.set()
        return super().is_set()
