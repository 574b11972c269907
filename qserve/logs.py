"""Log lines of our own processes: text or JSON, one line an event, to stderr.

Programs that import qserve configure logging themselves.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from qserve.config import Settings


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head = f"{_timestamp(record)} {record.levelname} {record.name} {record.getMessage()}"
        return head if record.exc_info is None else f"{head}\n{self.formatException(record.exc_info)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"ts": _timestamp(record), "level": record.levelname, "logger": record.name, "msg": record.getMessage()}
        if record.exc_info is not None:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(settings: Settings) -> None:
    """Send the `qserve` loggers to stderr in the settings' format and level. Raises ValueError for a wrong level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.log_format == "json" else _Text())
    root = logging.getLogger("qserve")
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    root.propagate = False


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
