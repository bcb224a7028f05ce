"""The bucket as a rebuild reads it, and the findings that it reports."""

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

# full: check every byte of every file; manifests: check only existence and size of files.
Verify = Literal["full", "manifests"]

_ATTEMPT = re.compile(r"^a([1-9][0-9]*)\Z")

_FOLDERS: dict[Kind, str] = {"model": "models", "dataset": "datasets", "version": "versions"}


@dataclass(frozen=True)
class Damage:
    """Damaged data, the reason and the consequence."""

    what: str
    why: str
    so: str


@dataclass
class Findings:
    """Collected while the bucket is read.

    `assumed`: values that no record contains, and the defaults used instead. `repaired`: what was
    restored.
    """

    damaged: list[Damage] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    def damage(self, what: str, why: str, so: str) -> None:
        """Add a finding, once."""
        found = Damage(what, why, so)
        if found not in self.damaged:
            self.damaged.append(found)


# What the bucket does not contain, and what to do about it.
NOT_RESTORED = (
    "events and deliveries: earlier events are lost; the feed continues with higher positions",
    "webhooks: their secrets are not kept in object storage; create them again",
    "keys: only those with the scope embed, and only that scope (from the key snapshot); create new ones",
    "responses to Idempotency-Key: a repeated request finds the existing model or dataset",
    "pre-flights, and uploads that no dataset uses: create them again",
    "progress of running attempts: they report it again",
    "versions and manifests of deleted models: their files are gone",
)


@dataclass
class Bucket:
    """The store, how to verify it, and the findings so far."""

    store: ObjectStore
    verify: Verify
    findings: Findings = field(default_factory=Findings)
    # The highest feed position in any record; None without records.
    position: int | None = None
    _checked: dict[tuple[str, FileEntry], str | None] = field(default_factory=dict)

    def recorded(self, kind: Kind) -> set[str]:
        """Names that have a record of this kind."""
        prefix = f"{layout.records()}{_FOLDERS[kind]}/"
        keys = self.store.keys(prefix)
        return {key.removeprefix(prefix).removesuffix(".json") for key in keys}

    def record(self, kind: Kind, name: str) -> Recorded | None:
        """The record; None if missing or damaged. Raises Conflict for one of a newer release."""
        key = key_of(kind, name)
        try:
            found = read(self.store.read(key), kind, name)
        except ObjectNotFound:
            return None
        except DamagedRecord as error:
            so = "its contents are lost; the rest is taken from manifests"
            self.findings.damage(f"record {key}", str(error), so)
            return None
        self.position = max(self.position or 0, found.position)
        return found

    def read_manifest(self, key: str, sha256: str | None) -> bytes:
        """The manifest's bytes. Raises InvalidVersion if it is missing or not the recorded one."""
        try:
            data = self.store.read(key)
        except ObjectNotFound as error:
            raise InvalidVersion(f"{key} is missing") from error
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise InvalidVersion(f"{key} is not what was recorded (SHA-256)")
        return data

    def problem(self, key: str, entry: FileEntry) -> str | None:
        """Why an object does not match its entry, or None. Each object is checked once."""
        if (key, entry) not in self._checked:
            self._checked[key, entry] = self._look(key, entry)
        return self._checked[key, entry]

    def problem_of_shard(self, shard: Shard) -> str | None:
        """The same for a shard that must be in this store."""
        root = f"{self.store.uri}/"
        if not shard.uri.startswith(root):
            return f"{shard.uri} is not under {self.store.uri}"
        entry = FileEntry(sha256=shard.sha256, bytes=shard.bytes)
        return self.problem(shard.uri.removeprefix(root), entry)

    def attempts(self, job: str) -> int:
        """The highest attempt number that has files; 0 without any."""
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
