"""Counts of a replica, kept in lists."""


class RecordedMetrics:
    """Every event in order, for tests to look at."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, int]] = []
        self.errors: list[int] = []
        self.batches: list[tuple[int, int]] = []
        self.stages: list[str] = []
        self.swaps: list[tuple[str, int]] = []
        self.refusals: list[str] = []
        self.agreements: list[tuple[str, str, float, float]] = []
        self.dropped: list[str] = []

    def answered(self, model: str, rows: int, seconds: float) -> None:
        assert seconds >= 0
        self.answers.append((model, rows))

    def turned_away(self, status: int) -> None:
        self.errors.append(status)

    def batch(self, requests: int, rows: int) -> None:
        self.batches.append((requests, rows))

    def stage(self, name: str, seconds: float) -> None:
        self.stages.append(name)

    def swapped(self, model: str, version: int) -> None:
        self.swaps.append((model, version))

    def refused(self, model: str) -> None:
        self.refusals.append(model)

    def shadowed(self, model: str, pair: str, cosine: float, overlap: float) -> None:
        self.agreements.append((model, pair, cosine, overlap))

    def shadow_dropped(self, model: str) -> None:
        self.dropped.append(model)
