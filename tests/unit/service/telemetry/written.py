"""The log as it is written: each line is formatted where it is logged, as the server's handler does."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from service.telemetry.logs import JsonLines


class _Written(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(JsonLines().format(record)))


@contextmanager
def written_lines() -> Iterator[list[dict[str, object]]]:
    """Lines that the service logs in the block, from level info."""
    handler, logger = _Written(), logging.getLogger("service")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
