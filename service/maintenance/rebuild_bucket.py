"""The bucket as a rebuild reads it: records, versions, and the findings that it reports.

A stored manifest proves that a version was published, even if everything else was lost.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pydantic import ValidationError

from cmcl.contract.dataset import Shard
from cmcl.contract.errors import InvalidVersion, ObjectNotFound, WorkerError
from cmcl.contract.modality import FileEntry
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import (
    check_object,
    publish_manifest,
    read_candidate,
    read_version,
)
from service.database.queries.backup import Kind, Row
from service.database.queries.versions import from_manifest
from service.maintenance.backup import DamagedRecord, Recorded, key_of, read

# full: check every byte of every file; manifests: check only existence and size of files.
Verify = Literal["full", "manifests"]

_ATTEMPT = re.compile(r"^a([1-9][0-9]*)\Z")

_FOLDERS: dict[Kind, str] = {"model": "models", "dataset": "datasets", "version": "versions"}

# What the bucket does not contain, and what to do about it.
NOT_RESTORED = (
    "events and deliveries: earlier events are lost; the feed continues with higher positions",
    "webhooks: their secrets are not kept in object storage; create them again",
    "keys: only those with the scope embed, and only that scope (from the key snapshot); create new ones",
    "responses to Idempotency-Key: a repeated request finds the existing model or dataset",
    "uploads that no dataset uses: create them again",
    "progress of attempts and of preparations: running ones report it again, curves of ended ones are lost",
    "versions and manifests of deleted models: their files are gone",
)


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
            self._checked[key, entry] = self._verify(key, entry)
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

    def _verify(self, key: str, entry: FileEntry) -> str | None:
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


@dataclass(frozen=True)
class FoundVersion:
    """A version that gets a row. Unless `is_sound`, it can never be live again."""

    manifest: VersionManifest
    recorded: Row | None
    is_in_place: bool = True
    is_sound: bool = True

    @property
    def is_own(self) -> bool:
        """Whether a job of its model made it; False for a version that a branch has from its source."""
        return self.manifest.copied_from is None

    def row(self, now: datetime) -> Row:
        """The row. A version that is not recorded as stored will be stored again."""
        recorded, manifest = self.recorded or {}, self.manifest
        created_at = recorded.get("created_at", manifest.created_at)
        retired_at = recorded.get("retired_at")
        return {
            "model": manifest.model,
            "number": manifest.version,
            "job": manifest.job if self.is_own else None,
            "attempt": manifest.attempt,
            "parent": manifest.parent,
            **from_manifest(manifest),
            "created_at": created_at,
            "stored_at": recorded.get("stored_at", created_at if self.is_in_place else None),
            "retired_at": retired_at if self.is_sound else retired_at or now,
            "swept_at": recorded.get("swept_at"),
        }


@dataclass(frozen=True)
class ModelFolder:
    """The versions of one model; `recorded` by number, with the digests of their manifests.

    `head`: the newest recorded version, None without a record. `branched_from`: the model, of a branch. A deleted model
    may lack files.
    """

    bucket: Bucket
    model: str
    recorded: Mapping[int, Row]
    digests: Mapping[int, str | None]
    head: int | None
    branched_from: str | None
    is_deleted: bool
    may_repair: bool

    def versions(self) -> dict[int, FoundVersion]:
        """Versions by number, except those of which nothing is left."""
        folders = self.bucket.store.folders(f"{layout.model_prefix(self.model)}versions/")
        named = {int(name) for name in folders if name.isdecimal()}
        numbers = named | self.recorded.keys() | set(range(1, (self.head or 0) + 1))
        found = {number: self._find(number) for number in sorted(numbers)}
        return {number: version for number, version in found.items() if version is not None}

    def _find(self, number: int) -> FoundVersion | None:
        recorded = self.recorded.get(number)
        manifest, problem = self._in_place(number)
        if manifest is None:
            return self._from_origin(number, recorded, str(problem))
        if recorded is not None and recorded["swept_at"] is not None:
            return FoundVersion(manifest, recorded, is_sound=False)
        problem = self._problem_of_blobs(manifest)
        if problem is not None:
            self._report(number, problem, has_spare=False)
        return FoundVersion(manifest, recorded, is_sound=problem is None)

    def _from_origin(self, number: int, recorded: Row | None, problem: str) -> FoundVersion | None:
        """A version without a readable manifest, as its attempt has it, or the model that was branched."""
        if recorded is None and self.head is not None and number > self.head:
            # It is being stored: the record of its job predates it.
            return None
        spare = None if recorded is None else self._spare(number, recorded)
        if spare is not None and recorded is not None and recorded["stored_at"] is None:
            # It was never stored: the service will store it.
            return FoundVersion(spare, recorded, is_in_place=False)
        if spare is None or not self.may_repair:
            self._report(number, problem, has_spare=spare is not None)
            return None
        publish_manifest(self.bucket.store, spare)
        what = f"version {number} of {self.model!r}"
        self.bucket.findings.repaired.append(f"{what} was restored ({problem})")
        return FoundVersion(spare, recorded)

    def _in_place(self, number: int) -> tuple[VersionManifest | None, str | None]:
        """Its manifest, or the reason why there is none."""
        key = layout.version_manifest(self.model, number)
        try:
            data = self.bucket.read_manifest(key, self.digests.get(number))
            manifest = VersionManifest.model_validate_json(data)
        except ValidationError as error:
            return None, f"{key} cannot be read: {error.errors(include_url=False)[0]['msg']}"
        except InvalidVersion as error:
            return None, str(error)
        if (manifest.model, manifest.version) != (self.model, number):
            return None, f"{key} is of version {manifest.version} of {manifest.model!r}"
        return manifest, None

    def _problem_of_blobs(self, manifest: VersionManifest) -> str | None:
        problems = (
            self.bucket.problem(layout.blob(entry.sha256), entry) for entry in manifest.own.values()
        )
        return next((problem for problem in problems if problem), None)

    def _spare(self, number: int, recorded: Row) -> VersionManifest | None:
        """Its manifest at its origin, if everything that it names is stored."""
        try:
            if recorded["job"] is not None:
                found = read_candidate(self.bucket.store, recorded["job"], recorded["attempt"])
            elif self.branched_from is not None:
                original = read_version(self.bucket.store, self.branched_from, number)
                found = original.as_in_branch(self.model)
            else:
                return None
        except WorkerError as error:
            if error.retry_can_help:
                raise
            return None
        is_it = (found.model, found.version) == (self.model, number)
        return found if is_it and self._problem_of_blobs(found) is None else None

    def _report(self, number: int, problem: str, *, has_spare: bool) -> None:
        if self.is_deleted:
            return
        so = "it can no longer be live"
        if self.head is None or number >= self.head:
            so += ", and the model cannot learn further: branch it from an earlier version"
        if has_spare:
            so = "its origin still has it: --repair restores it"
        self.bucket.findings.damage(f"version {number} of {self.model!r}", problem, so)
