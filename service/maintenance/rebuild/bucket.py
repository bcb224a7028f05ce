"""What a rebuild has found out, for the person who must act on it."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Literal

from cmcl.contract.dataset import Shard
from cmcl.contract.errors import InvalidVersion, ObjectNotFound
from cmcl.contract.version import FileEntry
from service.database.queries.backup import Kind
from service.maintenance.backup import DamagedRecord, Recorded, key_of, read
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.versions import check_object

# full: every byte of every file; manifests: of files, that they are there and how long they are.
Verify = Literal["full", "manifests"]

_ATTEMPT = re.compile(r"^a([1-9][0-9]*)\Z")

_FOLDERS: dict[Kind, str] = {"model": "models", "dataset": "datasets", "version": "versions"}


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


@dataclass
class Bucket:
    """The store, how closely to look, and what was found so far."""

    store: ObjectStore
    verify: Verify
    findings: Findings = field(default_factory=Findings)
    # The largest position in the feed of events that any record knows; None without records.
    position: int | None = None
    _checked: dict[tuple[str, FileEntry], str | None] = field(default_factory=dict)

    def recorded(self, kind: Kind) -> set[str]:
        """Names of that kind that have a record."""
        prefix = f"{layout.records()}{_FOLDERS[kind]}/"
        keys = self.store.keys(prefix)
        return {key.removeprefix(prefix).removesuffix(".json") for key in keys}

    def record(self, kind: Kind, name: str) -> Recorded | None:
        """None where there is none, or a damaged one. Raises Conflict for a newer release's."""
        key = key_of(kind, name)
        try:
            found = read(self.store.read(key), kind, name)
        except ObjectNotFound:
            return None
        except DamagedRecord as error:
            so = "what it told is lost; the rest is taken from manifests"
            self.findings.damage(f"record {key}", str(error), so)
            return None
        self.position = max(self.position or 0, found.position)
        return found

    def read_manifest(self, key: str, sha256: str | None) -> bytes:
        """Its bytes. Raises InvalidVersion where it is missing, or not the recorded one."""
        try:
            data = self.store.read(key)
        except ObjectNotFound as error:
            raise InvalidVersion(f"{key} is missing") from error
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise InvalidVersion(f"{key} is not what was recorded (SHA-256)")
        return data

    def problem(self, key: str, entry: FileEntry) -> str | None:
        """What is wrong with an object that must be that entry; None if nothing is. Looked at once."""
        if (key, entry) not in self._checked:
            self._checked[key, entry] = self._look(key, entry)
        return self._checked[key, entry]

    def problem_of_shard(self, shard: Shard) -> str | None:
        """The same of a shard that must lie in this very store."""
        root = f"{self.store.uri}/"
        if not shard.uri.startswith(root):
            return f"{shard.uri} does not lie under {self.store.uri}"
        entry = FileEntry(sha256=shard.sha256, bytes=shard.bytes)
        return self.problem(shard.uri.removeprefix(root), entry)

    def attempts(self, job: str) -> int:
        """The largest number of an attempt that has left anything; 0 without any."""
        numbers = map(_ATTEMPT.match, self.store.folders(layout.runs_prefix(job)))
        return max((int(number.group(1)) for number in numbers if number), default=0)

    def _look(self, key: str, entry: FileEntry) -> str | None:
        try:
            if self.verify == "full":
                check_object(self.store, key, entry)
                return None
            found = self.store.size(key)
        except ObjectNotFound:
            return f"{key} is missing"
        except InvalidVersion as error:
            return str(error)
        same = found == entry.bytes
        return None if same else f"{key} has {found} bytes, its manifest says {entry.bytes}"
