"""Log lines as JSON, one object a line, with the ids that a line is about."""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime

# Given as `extra={...}`; every other attribute of a record is the logging module's own.
FIELDS = ("model", "dataset", "job", "attempt", "version", "method", "path", "status", "seconds")

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line; a traceback is a field of it."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_config(level: str) -> dict[str, object]:
    """For logging.config.dictConfig, and for uvicorn, which applies it itself."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            "service": {"level": level.upper()},
            "uvicorn.error": {"level": "INFO"},
            # Each request is logged by our own middleware, with its id and its time.
            "uvicorn.access": {"level": "WARNING"},
        },
    }
