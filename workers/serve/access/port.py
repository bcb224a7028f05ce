"""Who asks, as a port: the HTTP side need not know where keys come from."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Caller:
    """Somebody who was let in.

    `key`: what requests are counted and shared by. `owner`: whose models and collections exist for
    them; None: everybody's, as for the operator, and for all where no keys are asked for.
    """

    key: str
    owner: str | None

    def sees(self, owner: str | None) -> bool:
        """Whether a model or collection of that owner exists for this caller."""
        return owner is None or self.owns(owner)

    def owns(self, owner: str | None) -> bool:
        """Whether what that owner has is this caller's to use; of what nobody owns, the operator's."""
        return self.owner is None or self.owner == owner


class Doorkeeper(Protocol):
    """Decides without waiting for anybody."""

    def admit(self, authorization: str | None) -> Caller:
        """Whom the header `Authorization` speaks for. Raises errors.Unauthorized, NotReady."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it knows enough to let anybody in."""
        ...


class OpenDoor:
    """Where no keys are asked for."""

    def admit(self, authorization: str | None) -> Caller:
        return Caller("", None)

    @property
    def ready(self) -> bool:
        return True
