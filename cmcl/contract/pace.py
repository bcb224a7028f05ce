"""How slowly the body of a request may arrive, at the control plane and at the embeddings endpoint."""

from dataclasses import dataclass

# Slower than this over the whole of a body, a client would hold its place for hours.
LEAST_BYTES_PER_SECOND = 64 << 10


@dataclass(frozen=True)
class Pace:
    """Longest pause between two pieces, and least rate over the whole body."""

    idle_timeout_seconds: float
    bytes_per_second: int = LEAST_BYTES_PER_SECOND

    def seconds_left(self, waited: float, arrived: int) -> float:
        """For the next piece, after so many seconds of waiting brought so many bytes; can be negative."""
        behind = waited - arrived / self.bytes_per_second
        return self.idle_timeout_seconds - max(behind, 0.0)
