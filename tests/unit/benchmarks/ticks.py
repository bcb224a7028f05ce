"""WindowTimer that only count: what a test asserts must not depend on how long anything takes."""

from benchmarks.training.timing import WindowTimer


class Ticks(WindowTimer):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def tick(self) -> None:
        self.count += 1
