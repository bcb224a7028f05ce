"""Rebuilds datasets with their jobs, from their records and the manifests of datasets and versions.

An unfinished job continues from its recorded state. Later progress is found in the store (a version, a
candidate, used attempt numbers), and nothing is done twice.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import ValidationError

from cmcl.contract.dataset import DatasetManifest, Shard, ShardRef
from cmcl.contract.errors import InvalidVersion
from cmcl.contract.job import submission_id
from cmcl.contract.version import LearnedDataset
from service.database.queries.backup import Row
from service.database.tables import datasets, jobs, upload_uses, uploads
from service.datasets.addresses import SCHEME
from service.datasets.request import NewDataset
from service.maintenance.rebuild.bucket import Bucket
from service.maintenance.rebuild.models import FoundModel
from service.maintenance.rebuild.versions import FoundVersion
from service.states import JobState
from workers.storage import layout

_ID = re.compile(r"^ds-[0-9a-f]{12}\Z")


@dataclass
class FoundDatasets:
    """Rows, unordered. `sequence` is missing if no record contains it."""

    datasets: list[Row] = field(default_factory=list)
    jobs: list[Row] = field(default_factory=list)
    uploads: dict[str, Row] = field(default_factory=dict)
    uses: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class _Learned:
    """The version that learned a dataset, and its ledger line."""

    version: FoundVersion
    line: LearnedDataset


@dataclass(frozen=True)
class DatasetFolders:
    """All datasets of a bucket; `models` by name."""

    bucket: Bucket
    models: Mapping[str, FoundModel]
    now: datetime

    def find(self) -> FoundDatasets:
        """Every dataset that has a record, a folder, or a line in a ledger."""
        learned = dict(_learned(self.models.values()))
        folders = self.bucket.store.folders(layout.dataset_prefix("").rstrip("/") + "/")
        names = self.bucket.recorded("dataset") | {name for name in folders if _ID.match(name)}
        found = FoundDatasets()
        for name in sorted(names | learned.keys()):
            self._add(found, name, learned.get(name))
        return found

    def _add(self, found: FoundDatasets, name: str, learned: _Learned | None) -> None:
        record = self.bucket.record("dataset", name)
        row = next(iter(record.rows(datasets)), None) if record else None
        job = next(iter(record.rows(jobs)), None) if record else None
        manifest, problem = self._manifest(name, record.manifest_sha256 if record else None)
        if row is None:
            row = self._without_record(name, manifest, learned)
        if row is None or row["model"] not in self.models:
            so = "it is left out; garbage collection removes its folder after a day"
            why = problem or "no existing model is known for it"
            self.bucket.findings.damage(f"dataset {name}", why, so)
            return
        row["manifest"] = manifest and manifest.model_dump(mode="json")
        if learned is not None and row["sealed_at"] is None:
            # It was sealed and learned after the record was written.
            row |= {"sealed_at": self.now, **_known_by(row, record.rows(uploads) if record else [])}
        if row["sealed_at"] is not None:
            job = self._job(row, job, learned)
        self._check(row, job, manifest, problem)
        found.datasets.append(row)
        found.jobs += [job] if job is not None else []
        if record is not None:
            found.uses += record.rows(upload_uses)
            found.uploads |= {each["id"]: each for each in record.rows(uploads)}

    def _manifest(self, name: str, sha256: str | None) -> tuple[DatasetManifest | None, str | None]:
        """The manifest, or the problem with it; both None if it never had one, as far as is known."""
        key = layout.dataset_manifest(name)
        try:
            return DatasetManifest.model_validate_json(self.bucket.read_manifest(key, sha256)), None
        except ValidationError as error:
            return None, f"{key} cannot be read: {error.errors(include_url=False)[0]['msg']}"
        except InvalidVersion as error:
            is_expected = sha256 is not None or not str(error).endswith("is missing")
            return None, str(error) if is_expected else None

    def _check(
        self, row: Row, job: Row | None, manifest: DatasetManifest | None, problem: str | None
    ) -> None:
        """Report missing data, unless it is meant to be gone."""
        is_learned = job is not None and job["state"] == JobState.PUBLISHED
        is_swept = row.get("swept_at") is not None and not is_learned
        if row["deleted_at"] or is_swept or self.models[row["model"]].is_deleted:
            return
        if problem is not None:
            so = "later versions cannot be measured on it" if is_learned else "its job will fail"
            self.bucket.findings.damage(f"dataset {row['id']}", problem, so)
            return
        is_open = job is not None and job["finished_at"] is None
        for shard in _own_shards(self.bucket, manifest, with_training=is_open):
            why = self.bucket.problem_of_shard(shard)
            if why is not None:
                so = "its job will fail" if is_open else "later versions cannot be measured on it"
                self.bucket.findings.damage(f"dataset {row['id']}", why, so)

    def _job(self, row: Row, recorded: Row | None, learned: _Learned | None) -> Row:
        job = recorded if recorded is not None else self._new_job(row, learned)
        if learned is not None and job["state"] != JobState.PUBLISHED:
            job |= _as_published(learned.version, self.now)
        if job["finished_at"] is None:
            self._skip_used_attempts(job)
        return job

    def _skip_used_attempts(self, job: Row) -> None:
        """Attempt numbers are unique: one assigned after the record was written may be running."""
        used = self.bucket.attempts(job["id"])
        if used <= job["attempt"]:
            return
        job |= {
            "attempt": used,
            "state": JobState.QUEUED,
            "message": f"attempt {used} was lost: the database was rebuilt",
            "revision": job["revision"] + 1,
            "state_changed_at": self.now,
        }

    def _new_job(self, row: Row, learned: _Learned | None) -> Row:
        """A job without a record: it has learned the dataset, or it is queued."""
        name = row["id"]
        job = learned.version.manifest.job if learned else name.replace("ds-", "job-", 1)
        if learned is None:
            self.bucket.findings.assumed.append(
                f"dataset {name} has no record and no version: it is queued to be learned"
            )
        return {
            "id": job,
            "owner": row["owner"],
            "model": row["model"],
            "dataset": name,
            "state": JobState.QUEUED,
            "reason": None,
            "message": None,
            "revision": 0,
            "attempt": 0,
            "attempts_before_retry": 0,
            "submission_id": None,
            "parent_version": None,
            "version": None,
            "cancel_requested": False,
            "created_at": row["created_at"],
            "state_changed_at": row["created_at"],
            "finished_at": None,
        }

    def _without_record(
        self, name: str, manifest: DatasetManifest | None, learned: _Learned | None
    ) -> Row | None:
        """The row from manifests. Its fingerprint is unknown: posted again, it would be learned again."""
        source = manifest or (learned.line if learned else None)
        model = manifest.model if manifest else learned.version.manifest.model if learned else ""
        if source is None or model not in self.models:
            return None
        self.bucket.findings.assumed.append(
            f"dataset {name} has no record: posted again, it would be learned a second time"
        )
        shards = tuple(map(_named, manifest.shards)) if manifest else ()
        request = NewDataset(model=model, name=source.name, pair=source.pair, shards=shards)
        at = learned.version.manifest.created_at if learned else self.now
        return {
            "id": name,
            "owner": self.models[model].model["owner"],
            "model": model,
            "name": source.name,
            "pair_first": source.pair.first,
            "pair_second": source.pair.second,
            "request": request.model_dump(mode="json"),
            "fingerprint": None,
            "quarantine_reason": None,
            "created_at": at,
            "sealed_at": at,
            "deleted_at": None,
        }


def _known_by(row: Row, named: Iterable[Row]) -> Row:
    """The fingerprints of the dataset, sealed with these uploads."""
    contents = {
        f"{SCHEME}{upload['id']}": upload["sha256"]
        for upload in named
        if upload["state"] == "complete"
    }
    known_by = NewDataset.model_validate(row["request"]).fingerprints(contents)
    return {"fingerprint": known_by.by_address, "content_fingerprint": known_by.by_content}


def _learned(found: Iterable[FoundModel]) -> Iterable[tuple[str, _Learned]]:
    """By dataset: the version of its own model, not a branch's copy."""
    for model in found:
        for version in model.versions.values():
            if version.copied_from is None:
                manifest = version.manifest
                yield manifest.dataset, _Learned(version, manifest.learned[-1])


def _as_published(version: FoundVersion, now: datetime) -> Row:
    manifest = version.manifest
    return {
        "state": JobState.PUBLISHED,
        "reason": None,
        "message": None,
        "attempt": manifest.attempt,
        "submission_id": submission_id(manifest.job, manifest.attempt),
        "parent_version": manifest.parent,
        "version": manifest.version,
        "cancel_requested": False,
        "state_changed_at": now,
        "finished_at": now,
    }


def _own_shards(
    bucket: Bucket, manifest: DatasetManifest | None, *, with_training: bool
) -> list[Shard]:
    """Shards that must be in our store: held-out ones, and converted ones until they are learned."""
    if manifest is None:
        return []
    folder = f"{bucket.store.uri}/{layout.dataset_prefix(manifest.dataset)}"
    training = [shard for shard in manifest.shards if shard.uri.startswith(folder)]
    return [*manifest.evaluation_shards, *(training if with_training else [])]


def _named(shard: Shard) -> ShardRef:
    """The shard as the user named it, as far as known."""
    return ShardRef(uri=shard.source.uri if shard.source else shard.uri)
