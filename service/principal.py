"""Who asks, and what they may do."""

from dataclasses import dataclass
from enum import StrEnum

# Whose things are that nobody in particular made.
DEFAULT_OWNER = "default"
# In the place of an owner: all of them. No owner can be called so.
EVERY_OWNER = "*"


class Scope(StrEnum):
    """What a key permits. Each route asks for one."""

    READ = "read"  # look at models, datasets, jobs, versions, events
    WRITE = "write"  # make models and branches, upload and post datasets
    TRAIN = "train"  # cancel, retry, approve, promote, roll back, policies, pre-flights
    ADMIN = "admin"  # keys, webhooks, deleting models and versions
    EMBED = "embed"  # ask the embeddings endpoint


@dataclass(frozen=True)
class Principal:
    """Somebody with a name for the history. `owner` is the tenant; None sees everybody's things."""

    name: str
    owner: str | None
    scopes: frozenset[Scope]

    @property
    def owns_as(self) -> str:
        """The owner of what this principal makes."""
        return self.owner or DEFAULT_OWNER

    def sees(self, owner: str) -> bool:
        """Whether things of that owner exist for this principal."""
        return self.owner is None or self.owner == owner


EVERY_SCOPE = frozenset(Scope)
# The control plane itself.
RECONCILER = Principal("reconciler", None, EVERY_SCOPE)
# Whoever is on this machine, where no keys are asked for.
LOCAL = Principal("local", None, EVERY_SCOPE)
