"""Counts of a replica, kept in lists."""


class RecordedMetrics:
    """Every event in order, for tests to look at."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, int]] = []
        self.errors: list[int] = []
        self.swaps: list[tuple[str, int]] = []
        self.refusals: list[str] = []

    def answered(self, model: str, rows: int) -> None:
        self.answers.append((model, rows))

    def turned_away(self, status: int) -> None:
        self.errors.append(status)

    def swapped(self, model: str, version: int) -> None:
        self.swaps.append((model, version))

    def refused(self, model: str) -> None:
        self.refusals.append(model)
