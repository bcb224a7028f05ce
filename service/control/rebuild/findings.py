"""What a rebuild has found out, for the person who must act on it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was, and what follows from it."""

    what: str
    why: str
    so: str


@dataclass
class Findings:
    """Grows while the bucket is read.

    `assumed`: what no record tells, and what was taken instead. `repaired`: what was put in place again,
    or, without --repair, could be.
    """

    damaged: list[Damage] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    def damage(self, what: str, why: str, so: str) -> None:
        """Said once, however often it is met."""
        found = Damage(what, why, so)
        if found not in self.damaged:
            self.damaged.append(found)


# What no bucket holds, and what to do about it.
NOT_RESTORED = (
    "events and deliveries: what happened before cannot be read any more; the feed goes on above it",
    "webhooks: their secrets are not kept in object storage; register them anew",
    "keys: those that may embed can do that again (the signed list), and nothing else; make new ones",
    "answers to Idempotency-Key: a request that is sent again finds the model or dataset that is there",
    "pre-flights, and uploads that no dataset names: post and send them again",
    "what the attempt under way had said of itself: it says so again",
    "versions and manifests of what was deleted: their files are gone",
)
