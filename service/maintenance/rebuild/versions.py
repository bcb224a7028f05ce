"""Rebuilds versions: a stored manifest proves that a version was published, whatever else was lost."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from cmcl.contract.errors import InvalidVersion, WorkerError
from cmcl.contract.version import VersionManifest
from service.database.queries.backup import Row
from service.datasets.verify import read_manifest
from service.maintenance.rebuild.bucket import Bucket
from workers.storage import layout
from workers.storage.versions import (
    file_key,
    publish_files,
    read_candidate,
    read_version,
    refer_to_version,
)


@dataclass(frozen=True)
class FoundVersion:
    """A version that gets a row. Unless `is_sound`, it can never be live again."""

    manifest: VersionManifest
    recorded: Row | None
    copied_from: str | None
    is_in_place: bool = True
    is_sound: bool = True

    def row(self, now: datetime) -> Row:
        """The row. A version that is not recorded as stored will be stored again."""
        recorded, manifest = self.recorded or {}, self.manifest
        created_at = recorded.get("created_at", manifest.created_at)
        document = manifest.model_dump(mode="json")
        retired_at = recorded.get("retired_at")
        return {
            "model": manifest.model,
            "number": manifest.version,
            "job": None if self.copied_from else manifest.job,
            "attempt": manifest.attempt,
            "parent": manifest.parent,
            "dataset": manifest.dataset,
            "dataset_name": manifest.learned[-1].name,
            "manifest": document,
            "evaluation": document["report"]["evaluation"],
            "copied_from": self.copied_from,
            "created_at": created_at,
            "stored_at": recorded.get("stored_at", created_at if self.is_in_place else None),
            "retired_at": retired_at if self.is_sound else retired_at or now,
        }


@dataclass(frozen=True)
class ModelFolder:
    """The versions of one model; `recorded` by number, with the digests of their manifests.

    `head`: the newest recorded version, None without a record. A deleted model may lack files.
    """

    bucket: Bucket
    model: str
    recorded: Mapping[int, Row]
    digests: Mapping[int, str | None]
    head: int | None
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
        if manifest is not None:
            problem = self._problem_of_files(manifest)
        if manifest is not None and problem is None:
            return FoundVersion(manifest, recorded, self._source(manifest, recorded))
        if manifest is None and self._is_being_stored(number):
            return None
        spare = self._spare(number, recorded, manifest)
        if spare is not None and recorded is not None and recorded["stored_at"] is None:
            # It was never stored: the service will store it.
            return FoundVersion(spare, recorded, recorded["copied_from"], is_in_place=False)
        if spare is not None and self.may_repair:
            return self._repaired(spare, recorded, str(problem))
        if not self.is_deleted:
            self._report(number, str(problem), has_spare=spare is not None)
        if manifest is None:
            return None
        source = self._source(manifest, recorded)
        return FoundVersion(manifest, recorded, source, is_sound=False)

    def _in_place(self, number: int) -> tuple[VersionManifest | None, str | None]:
        """Its manifest, or the reason why there is none."""
        key = layout.version_file(self.model, number, layout.MANIFEST)
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

    def _problem_of_files(self, manifest: VersionManifest) -> str | None:
        keys = {file_key(manifest, name): entry for name, entry in manifest.files.items()}
        line = manifest.learned[-1]
        keys[layout.dataset_moments(line.dataset)] = line.moments
        problems = (self.bucket.problem(key, entry) for key, entry in keys.items())
        return next((problem for problem in problems if problem), None)

    def _is_being_stored(self, number: int) -> bool:
        """Whether it only has files beyond the recorded versions: its job's record predates it."""
        return self.head is not None and number > self.head and number not in self.recorded

    def _source(self, manifest: VersionManifest, recorded: Row | None) -> str | None:
        """The model whose folder has its files; without a record, from its dataset's manifest."""
        if recorded is not None:
            source: str | None = recorded["copied_from"]
            return source
        return manifest.files_in or foreign_model(self.bucket, manifest)

    def _spare(
        self, number: int, recorded: Row | None, manifest: VersionManifest | None
    ) -> VersionManifest | None:
        """The same version at its origin: its attempt's folder, or the model it was copied from."""
        source = recorded["copied_from"] if recorded else None
        try:
            if source is not None:
                original = read_version(self.bucket.store, source, number)
                found = original.model_copy(update={"model": self.model, "files_in": source})
                return found if self._is_whole(original, source) else None
            if recorded is not None:
                found = read_candidate(self.bucket.store, recorded["job"], recorded["attempt"])
            elif manifest is not None:
                found = read_candidate(self.bucket.store, manifest.job, manifest.attempt)
            else:
                return None
        except WorkerError as error:
            if error.retry_can_help:
                raise
            return None
        is_it = (found.model, found.version) == (self.model, number)
        return found if is_it and self._is_whole(found, None) else None

    def _is_whole(self, manifest: VersionManifest, source: str | None) -> bool:
        entries = dict(manifest.files)
        if source is None:
            entries[layout.MOMENTS] = manifest.learned[-1].moments
        for name, entry in entries.items():
            key = (
                layout.run_file(manifest.job, manifest.attempt, name)
                if source is None
                else layout.version_file(source, manifest.version, name)
            )
            if self.bucket.problem(key, entry) is not None:
                return False
        return True

    def _repaired(self, spare: VersionManifest, recorded: Row | None, problem: str) -> FoundVersion:
        source = recorded["copied_from"] if recorded else None
        if source is None:
            publish_files(self.bucket.store, spare)
        else:
            refer_to_version(self.bucket.store, spare)
        what = f"version {spare.version} of {self.model!r}"
        self.bucket.findings.repaired.append(f"{what} was restored ({problem})")
        return FoundVersion(spare, recorded, source)

    def _report(self, number: int, problem: str, *, has_spare: bool) -> None:
        so = "it can no longer be live"
        if self.head is None or number >= self.head:
            so += ", and the model cannot learn further: branch it from an earlier version"
        if has_spare:
            so = "a sound copy exists at its origin: --repair restores it"
        self.bucket.findings.damage(f"version {number} of {self.model!r}", problem, so)


def foreign_model(bucket: Bucket, manifest: VersionManifest) -> str | None:
    """The model to which this version's dataset was posted, if it is another one."""
    try:
        dataset = read_manifest(bucket.store, manifest.dataset)
    except InvalidVersion:
        return None
    if dataset is None or dataset.model == manifest.model:
        return None
    return dataset.model
