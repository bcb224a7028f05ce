"""How announcements get from the replica that was told to all of them, as ports."""

from typing import Protocol


class ChannelLost(Exception):
    """Nothing is heard through this channel any more; opening it again may help."""


class Channel(Protocol):
    """Reaches all replicas. What is announced while nobody listens is lost, and may be."""

    def announce(self, model: str) -> None:
        """Something changed about this model. Waits for nobody, and never fails."""
        ...

    def wait(self, seen: int) -> int:
        """How often something was announced so far.

        Answers at once if that is another number than `seen`, else when it becomes one, or after
        some seconds. Raises ChannelLost.
        """
        ...


class Announcer(Protocol):
    """What the route needs; used from one event loop."""

    def announce(self, model: str) -> None:
        """Let every replica look at the store now. Waits for nobody, and never fails."""
        ...


class Unheard:
    """Where there is nobody to tell."""

    def announce(self, model: str) -> None:
        return
