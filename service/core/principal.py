"""The authenticated caller and its permissions."""

from dataclasses import dataclass

from cmcl.contract.api.access import Scope

# The owner of things created without one.
DEFAULT_OWNER = "default"
# Means all owners. No owner can have this name.
EVERY_OWNER = "*"


@dataclass(frozen=True)
class Principal:
    """An authenticated caller. `owner` is the tenant; None sees the things of all owners."""

    name: str
    owner: str | None
    scopes: frozenset[Scope]

    @property
    def owns_as(self) -> str:
        return self.owner or DEFAULT_OWNER

    def sees(self, owner: str) -> bool:
        """Whether this principal can see that owner's things."""
        return self.owner is None or self.owner == owner


EVERY_SCOPE = frozenset(Scope)
# The control plane itself.
RECONCILER = Principal("reconciler", None, EVERY_SCOPE)
# Anyone on this machine while auth is off.
LOCAL = Principal("local", None, EVERY_SCOPE)
