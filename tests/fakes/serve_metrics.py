"""Counts of a replica, kept in lists."""

from workers.serve.telemetry import ServeMetrics


class RecordedMetrics(ServeMetrics):
    """Records every event in order."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[tuple[str, int]] = []
        self.statuses: list[int] = []
        self.batches: list[tuple[int, int]] = []
        self.stages: list[str] = []
        self.swaps: list[tuple[str, int]] = []
        self.swap_seconds: list[float] = []
        self.refusals: list[str] = []
        self.refusal_kinds: list[str] = []
        self.lags: list[tuple[str, int]] = []
        self.gone_models: list[str] = []
        self.evictions: list[str] = []
        self.refused_key_lists = 0
        self.hearing: list[bool] = []

    def answered(self, model: str, rows: int, seconds: float) -> None:
        assert seconds >= 0
        self.answers.append((model, rows))

    def finished(self, status: int) -> None:
        self.statuses.append(status)

    @property
    def errors(self) -> list[int]:
        """Statuses of failed requests."""
        return [status for status in self.statuses if status >= 400]

    def batch(self, requests: int, rows: int) -> None:
        self.batches.append((requests, rows))

    def stage(self, name: str, seconds: float) -> None:
        self.stages.append(name)

    def swapped(self, model: str, version: int, seconds: float) -> None:
        self.swaps.append((model, version))
        self.swap_seconds.append(seconds)

    def refused(self, model: str, kind: str) -> None:
        self.refusals.append(model)
        self.refusal_kinds.append(kind)

    def lag(self, model: str, generations: int) -> None:
        self.lags.append((model, generations))

    def gone(self, model: str) -> None:
        self.gone_models.append(model)

    def evicted(self, model: str) -> None:
        self.evictions.append(model)

    def key_list_refused(self) -> None:
        self.refused_key_lists += 1

    def connected(self, announcements: bool) -> None:
        self.hearing.append(announcements)
