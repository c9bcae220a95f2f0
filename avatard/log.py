"""Logging with the standard library: one line per event, for people or as JSON.

An event is a short constant text; its values are fields: `logger.info("listening", extra={"url": url})`.
"""

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TextIO

from avatard.config import Log

#: Attributes of every LogRecord; any other was passed as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def setup(config: Log, secrets: Iterable[str] = (), stream: TextIO | None = None) -> None:
    """Send all loggers of this process to one handler; each process calls it once, and again to change it.

    Args:
        config: level and format.
        secrets: texts that are replaced by `***` in every line.
        stream: standard error when not given.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    form = _Json if config.format == "json" else _Human
    handler.setFormatter(form(tuple(secret for secret in secrets if secret)))
    logging.basicConfig(handlers=[handler], level=config.level.upper(), force=True)
    # Of other libraries only warnings: their info lines do not concern the avatar.
    for name in ("aiohttp.access", "aioice", "aiortc", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))


def _quoted(text: str) -> tuple[str, ...]:
    return text, repr(text)[1:-1], json.dumps(text)[1:-1]


class _OneLine(logging.Formatter):
    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__()
        # Inside a quoted value, a secret appears in its quoted form.
        quotings = {form for text in secrets for once in _quoted(text) for form in _quoted(once)}
        self._secrets = sorted(quotings, key=len, reverse=True)

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return fields


class _Human(_OneLine):
    """`12:34:56.789 INFO    avatard.gateways.http: listening url=http://127.0.0.1:8080`."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {name}={value}" for name, value in self._fields(record).items())
        line = f"{at} {record.levelname:<7} {record.name}: {record.getMessage()}{fields}"
        # A text from a client must not be able to forge a second event.
        return self._hide("\\n".join(line.splitlines()))


class _Json(_OneLine):
    """One JSON object: `time` (UTC), `level`, `logger`, `event` and the event's values."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fixed = {"time": at, "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        return self._hide(json.dumps(self._fields(record) | fixed, default=str))
