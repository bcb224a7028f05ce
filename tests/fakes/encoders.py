"""Encoders that a test can watch and hold up."""

import threading
from collections.abc import Sequence

import numpy as np

from workers.serve.encoders.port import Encoded
from workers.serve.versions.loading import Float32Array


class LengthEncoder:
    """A text's features are its length, twice. `bad` cannot be read, and `bug` breaks the pass.

    A pass waits until `go` is set.
    """

    def __init__(self) -> None:
        self.passes: list[list[str]] = []
        self.go = threading.Event()
        self.go.set()

    def read(self, raw: str | bytes) -> str:
        text = raw if isinstance(raw, str) else raw.decode()
        if text == "bad":
            raise ValueError("it is bad")
        return text

    def features(self, items: Sequence[str]) -> Float32Array:
        self.passes.append(list(items))
        assert self.go.wait(60), "the test forgot to let the encoder go on"
        if "bug" in items:
            raise RuntimeError("out of memory")
        return np.array([[len(item), len(item)] for item in items], np.float32)


class RecordedHops:
    """An encoder's process without the process: what was sent, and `answer` to it."""

    def __init__(self, answer: Encoded | Exception | None = None) -> None:
        self.sent: list[list[str | bytes]] = []
        self._answer = answer

    async def __call__(self, raw: Sequence[str | bytes]) -> Encoded:
        self.sent.append(list(raw))
        if isinstance(self._answer, Exception):
            raise self._answer
        if self._answer is not None:
            return self._answer
        return np.array([[len(item)] * 2 for item in raw], np.float32)
