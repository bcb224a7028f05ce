"""What a replica counts, as a port: HTTP and follower can be tested without Ray."""

from typing import Protocol


class ServeMetrics(Protocol):
    """Told about each event, from any thread."""

    def answered(self, model: str, rows: int) -> None:
        """A request got its embeddings."""
        ...

    def turned_away(self, status: int) -> None:
        """A request got an error."""
        ...

    def swapped(self, model: str, version: int) -> None:
        """Another version answers from now on."""
        ...

    def refused(self, model: str) -> None:
        """A version could not be used, or not yet; the one before goes on answering."""
        ...
