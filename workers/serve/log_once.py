"""Warnings that are logged when a failure begins or changes, and not at every retry."""

import logging


class LogOnce:
    """A store that is unavailable for an hour must not fill the disk with one warning a second.

    `message` has two placeholders: what failed, and the error. Used from several threads.
    """

    def __init__(self, logger: logging.Logger, message: str) -> None:
        self._logger = logger
        self._message = message
        self._last: dict[str, str] = {}

    def failed(self, what: str, error: object) -> None:
        """Log the failure unless it is the one that was logged last."""
        if self._last.get(what) != str(error):
            self._last[what] = str(error)
            self._logger.warning(self._message, what, error)

    def recovered(self, what: str) -> None:
        """Forget the failure: the next one is logged again."""
        self._last.pop(what, None)
