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
from cmcl.contract.job import READS_ROWS, submission_id
from cmcl.contract.version import LearnedDataset
from cmcl.storage import layout
from service.core.states import JobState
from service.database.queries.backup import Row
from service.database.tables import attempts, datasets, jobs, upload_uses, uploads
from service.datasets.request import SCHEME, NewDataset
from service.maintenance.rebuild_bucket import Bucket, FoundVersion
from service.maintenance.rebuild_models import FoundModel

# State of the newest attempt, by the state of a job that has succeeded.
_OUTCOMES = {JobState.PUBLISHED: "candidate", JobState.EVALUATED: "measured"}
_ID = re.compile(r"^ds-[0-9a-f]{12}\Z")


@dataclass
class FoundDatasets:
    """Rows, unordered. `sequence` is missing if no record contains it."""

    datasets: list[Row] = field(default_factory=list)
    jobs: list[Row] = field(default_factory=list)
    attempts: list[Row] = field(default_factory=list)
    uploads: dict[str, Row] = field(default_factory=dict)
    uses: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class _Learned:
    """The version that learned a dataset, and the line of its lineage."""

    version: FoundVersion
    line: LearnedDataset


@dataclass(frozen=True)
class DatasetFolders:
    """All datasets of a bucket; `models` by name."""

    bucket: Bucket
    models: Mapping[str, FoundModel]
    now: datetime

    def find(self) -> FoundDatasets:
        """Every dataset that has a record, a folder, or a line in a lineage."""
        learned = dict(_learned(self.models.values()))
        folders = self.bucket.store.folders(layout.dataset_prefix("").rstrip("/") + "/")
        names = self.bucket.recorded("dataset") | {name for name in folders if _ID.match(name)}
        found = FoundDatasets()
        for name in sorted(names | learned.keys()):
            self._add(found, name, learned.get(name))
        for model in self.models.values():
            merges = [self._change(job) for job in model.merges]
            self._add_jobs(found, merges, model.attempts)
        return found

    def _add(self, found: FoundDatasets, name: str, learned: _Learned | None) -> None:
        record = self.bucket.record("dataset", name)
        row = next(iter(record.rows(datasets)), None) if record else None
        recorded = record.rows(jobs) if record else []
        job = next((each for each in recorded if each["kind"] in READS_ROWS), None)
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
        own = [job] if job is not None else []
        changes = [each for each in recorded if each["kind"] not in READS_ROWS]
        self._unlearn(row, changes)
        self._add_jobs(found, [*own, *changes], record.rows(attempts) if record else [])
        if record is not None:
            found.uses += record.rows(upload_uses)
            found.uploads |= {each["id"]: each for each in record.rows(uploads)}

    def _unlearn(self, row: Row, changes: list[Row]) -> None:
        """Bring jobs that unlearn the dataset up to date, and delete it if one of them has published a version."""
        for job in map(self._change, changes):
            is_its_model = job["model"] == row["model"]
            if is_its_model and job["state"] == JobState.PUBLISHED and row["deleted_at"] is None:
                row |= {"deleted_at": self.now, "fingerprint": None, "swept_at": None}

    def _change(self, job: Row) -> Row:
        """A job that reads no rows, as far as the store shows that it went on after it was recorded."""
        model = self.models.get(job["model"])
        made = (version for version in model.versions.values() if version.is_own) if model else ()
        version = next((each for each in made if each.manifest.job == job["id"]), None)
        if version is not None and job["state"] != JobState.PUBLISHED:
            job |= _as_published(version, self.now)
        if job["finished_at"] is None:
            self._skip_used_attempts(job)
        return job

    def _add_jobs(self, found: FoundDatasets, added: list[Row], recorded: list[Row]) -> None:
        """Add jobs of models that exist, with their attempts."""
        for job in added:
            if job["model"] in self.models:
                found.jobs.append(job)
                own = [attempt for attempt in recorded if attempt["job"] == job["id"]]
                found.attempts += self._attempts(job, own)

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
        """Report missing data, unless it was deleted on purpose."""
        is_needed = job is not None and job["state"] in (JobState.PUBLISHED, JobState.EVALUATED)
        is_swept = row.get("swept_at") is not None and not is_needed
        if row["deleted_at"] or is_swept or self.models[row["model"]].is_deleted:
            return
        if problem is not None:
            so = "later versions cannot be measured on it" if is_needed else "its job will fail"
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
            _prepare_again(row, job, self.now)
        return job

    def _attempts(self, job: Row, recorded: list[Row]) -> list[Row]:
        """The recorded attempts of a job. All have ended but the one that it still waits for."""
        is_running = job["state"] in (JobState.SUBMITTING, JobState.RUNNING)
        for attempt in recorded:
            is_newest = attempt["number"] == job["attempt"]
            if attempt["ended_at"] is None and not (is_running and is_newest):
                outcome = _OUTCOMES.get(job["state"], "lost") if is_newest else "lost"
                attempt |= {"ended_at": self.now, "outcome": outcome}
        return recorded

    def _skip_used_attempts(self, job: Row) -> None:
        """Attempt numbers are unique: one assigned after the record was written may be running."""
        used = self.bucket.attempts(job["id"])
        if used <= job["attempt"]:
            return
        job |= {
            "attempt": used,
            "state": JobState.PREPARED,
            "message": f"attempt {used} was lost: the database was rebuilt",
            "revision": job["revision"] + 1,
            "state_changed_at": self.now,
        }

    def _new_job(self, row: Row, learned: _Learned | None) -> Row:
        """A job without a record: it has learned the dataset, or it is queued."""
        name = row["id"]
        job = learned.version.manifest.job if learned else name.replace("ds-", "job-", 1)
        is_measured = row["request"].get("evaluate_only", False)
        if learned is None:
            purpose = "measured" if is_measured else "learned"
            self.bucket.findings.assumed.append(
                f"dataset {name} has no record and no version: it is queued to be {purpose}"
            )
        return {
            "id": job,
            "owner": row["owner"],
            "model": row["model"],
            "kind": "evaluate" if is_measured else "learn",
            "dataset": name,
            "dataset_name": row["name"],
            "merges": None,
            "dry_run": False,
            "preparation": 0,
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
            f"dataset {name} has no record: posted again, it would not be recognized"
        )
        is_measured = manifest is not None and manifest.evaluate_only
        files = (
            ()
            if manifest is None
            else manifest.evaluation_shards
            if is_measured
            else manifest.shards
        )
        request = NewDataset(
            model=model,
            name=source.name,
            pair=source.pair,
            shards=tuple(map(_named, files)),
            evaluate_only=is_measured,
        )
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


def _prepare_again(row: Row, job: Row, now: datetime) -> None:
    """A job without the manifest of its dataset cannot be learned: it is queued, to be prepared again."""
    if row["manifest"] is None and job["state"] not in (JobState.QUEUED, JobState.PREPARING):
        job |= {
            "state": JobState.QUEUED,
            "message": "prepared again: the manifest of its dataset is lost",
            "revision": job["revision"] + 1,
            "state_changed_at": now,
        }


def _learned(found: Iterable[FoundModel]) -> Iterable[tuple[str, _Learned]]:
    """By dataset: the version of its own model, not a branch's copy."""
    for model in found:
        for version in model.versions.values():
            if version.is_own:
                line = version.manifest.new_line
                if line is not None:
                    yield line.dataset, _Learned(version, line)


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
    """Shards that must be in our store: held-out ones, and converted and encoded ones until they are learned."""
    if manifest is None:
        return []
    ours = f"{bucket.store.uri}/{layout.dataset_prefix(manifest.dataset)}"
    training = [shard for shard in manifest.shards if shard.uri.startswith(ours)]
    return [*manifest.evaluation_shards, *(training if with_training else [])]


def _named(shard: Shard) -> ShardRef:
    """The shard as the user named it, as far as known."""
    return ShardRef(uri=shard.source.uri if shard.source else shard.uri)
