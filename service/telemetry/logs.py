"""Logs as JSON, one object per line, with the ids of its subject and without secrets.

A record is always one line: JSON escapes line breaks, control characters and non-ASCII.
"""

import json
import logging
import re
from collections.abc import Collection
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

from service.core.settings import Settings
from service.telemetry.spans import trace_id

# Given as `extra={...}`; every other attribute of a record is the logging module's own.
FIELDS = (
    *("model", "dataset", "job", "attempt", "version", "reason", "trace_id"),
    *("upload", "webhook", "delivery"),
    *("method", "path", "status", "seconds"),
)
_HIDDEN = "[hidden]"
_SHORTEST_SECRET = 8
# Each kind of secret with lower-case hints: searching for hints is fast, and most lines have none.
# The id in front of a key's secret is kept: it says which key to revoke.
_SECRETS: list[tuple[tuple[str, ...], re.Pattern[str], str]] = [
    (("cmcl_",), re.compile(r"(cmcl_[0-9a-f]{12}_)[A-Za-z0-9_-]{16,}"), rf"\1{_HIDDEN}"),
    (("whsec_",), re.compile(r"(whsec_)[A-Za-z0-9+/=_-]{8,}"), rf"\1{_HIDDEN}"),
    (
        ("eyj",),
        # Only at the start of a word: matching from each letter would be quadratic.
        re.compile(r"(?:(?<=%20)|(?<![\w-]))eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+"),
        _HIDDEN,
    ),
    (
        ("bearer", "basic"),
        re.compile(r"(?i)\b(bearer|basic) +[A-Za-z0-9+/=._~-]{8,}"),
        rf"\1 {_HIDDEN}",
    ),
    (("://",), re.compile(r"(://[^/\s:@\"]{0,128}:)[^@/\s\"]{1,256}@"), rf"\1{_HIDDEN}@"),
    (
        ("x-amz-",),
        re.compile(r"(?i)(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"\\]+"),
        rf"\1{_HIDDEN}",
    ),
    (
        ("password", "passwd", "secret_access_key", "admin_key", "api_key"),
        re.compile(
            r"(?i)((?:password|passwd|secret_access_key|admin_key|api_key)['\"\\]* ?[=:] ?['\"\\]*)"
            r"[^\s'\",&\\]+"
        ),
        rf"\1{_HIDDEN}",
    ),
]


@dataclass
class RequestNote:
    """Fields of every line logged during a request."""

    id: str
    traceparent: str | None = None
    principal: str | None = None


current_request: ContextVar[RequestNote | None] = ContextVar("current_request", default=None)


def name_principal(name: str) -> None:
    """Set the principal's name (never a key) for the log lines of the current request."""
    note = current_request.get()
    if note is not None:
        note.principal = name


class JsonLines(logging.Formatter):
    """One JSON object per line. `secrets` are hidden in addition to the known patterns."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        super().__init__()
        self._secrets = [json.dumps(secret)[1:-1] for secret in secrets if secret]

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line; a traceback is a field of it."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # The trace of a job, where a line names one, is not that of the request that moved the job.
        line |= _of_request()
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return self._without_secrets(json.dumps(line, default=str))

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        small = text.lower()
        for hints, pattern, instead in _SECRETS:
            if any(hint in small for hint in hints):
                text = pattern.sub(instead, text)
        return text


def _of_request() -> dict[str, object]:
    note = current_request.get()
    if note is None:
        return {}
    fields = {
        "request_id": note.id,
        "trace_id": trace_id(note.traceparent),
        "principal": note.principal,
    }
    return {name: value for name, value in fields.items() if value is not None}


def secret_texts(settings: Settings) -> list[str]:
    """Secrets in the settings that no line may contain: keys, the database password.

    Short passwords are skipped: they may be common words, and are hidden in URLs anyway.
    """
    found = [unquote(urlsplit(settings.database_url).password or "")]
    keys = (settings.admin_key, settings.metrics_key)
    found += [key.get_secret_value() for key in keys if key is not None]
    if settings.encryption_key is not None:
        found += settings.encryption_key.get_secret_value().split(",")
    if settings.snapshot_signing_key is not None:
        # By line: quoted PEM may have other line breaks.
        found += _hidden_lines(settings.snapshot_signing_key.get_secret_value())
    return [text for text in found if len(text) >= _SHORTEST_SECRET]


def _hidden_lines(pem: str) -> list[str]:
    return [line for line in pem.splitlines() if not line.startswith("-----")]


def log_config(level: str, secrets: Collection[str] = ()) -> dict[str, object]:
    """For logging.config.dictConfig, and for uvicorn, which applies it itself."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines, "secrets": list(secrets)}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            "service": {"level": level.upper()},
            "uvicorn.error": {"level": "INFO"},
            # Our own middleware logs each request, with id and time.
            "uvicorn.access": {"level": "WARNING"},
            # A warning for each retry: hundreds of lines in an outage that the loops report once.
            "urllib3": {"level": "ERROR"},
        },
    }
