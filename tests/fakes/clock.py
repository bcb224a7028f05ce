"""A clock that advances only when a test moves it."""

from datetime import UTC, datetime, timedelta


class ScriptedClock:
    """Callable like the real one."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 24, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)
