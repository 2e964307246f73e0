"""Logging of Kernelet's processes, one line an event on stderr.

`2026-01-02T03:04:05.678Z INFO component message key=value`
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every log record has: other attributes came by `extra` and are shown as key=value."""


class LineFormatter(logging.Formatter):
    """Times are UTC with milliseconds. A traceback follows on lines of its own."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        line = f"{when}Z {record.levelname} {self._component} {record.getMessage()}"
        for key, value in vars(record).items():
            if key not in _STANDARD:
                line += f" {key}={_quoted(value)}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def setup(component: str, level: str = "INFO") -> None:
    """Sends all logging of this process to stderr. Raises ValueError for an unknown level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(component))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def _quoted(value: object) -> str:
    text = str(value)
    return f'"{text}"' if not text or any(c.isspace() for c in text) else text
