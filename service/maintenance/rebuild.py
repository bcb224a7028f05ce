"""The command `python -m service admin rebuild`: restores a lost database from object storage.

Of each model and dataset, the record has the rows as of some moment. What the store shows besides is newer: a complete
manifest proves that a version was published, `live.json` has what replicas were given, and folders of attempts have
their numbers. So nothing is done twice. What has no record is left out. The whole bucket is read first; then the database
is filled in one transaction.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from cmcl.contract.api.access import OPERATOR_KEY, Scope
from cmcl.contract.api.jobs import JobState
from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.errors import InvalidVersion, ObjectNotFound, StorageError, WorkerError
from cmcl.contract.job import READS_ROWS
from cmcl.contract.modality import FileEntry
from cmcl.contract.version import LivePointer, VersionManifest
from cmcl.storage import layout
from cmcl.storage.documents import parse_document
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.uris import open_store
from cmcl.storage.versions import (
    check_object,
    digest_of_manifest,
    parse_manifest,
    read_candidate,
    read_live,
    read_version,
)
from service.auth.key_snapshot import read_signed
from service.core.clock import utc_now
from service.core.errors import Conflict
from service.core.principal import DEFAULT_OWNER
from service.core.settings import Settings
from service.database.engine import Database, open_database
from service.database.migrations import upgrade
from service.database.queries import backup
from service.database.queries.backup import REBUILT, Kind, Row, Tables
from service.database.queries.versions import from_manifest
from service.maintenance.backup import DamagedRecord, decode, key_of

# full: check every byte of every file; manifests: check only existence and size of files.
Verify = Literal["full", "manifests"]
ManifestT = TypeVar("ManifestT", DatasetManifest, VersionManifest)

# Exit status: restored, except for the damage reported.
DAMAGED = 3
_ACTOR = "rebuild"
_ATTEMPT = re.compile(r"^a([1-9][0-9]*)\Z")
_FOLDER = re.compile(r"^ds-[0-9a-f]{12}\Z")
# State of the newest attempt, by the state of a job that has succeeded.
_OUTCOMES = {JobState.PUBLISHED: "candidate", JobState.EVALUATED: "measured"}
# Jobs whose dataset later versions are measured on, and open ones whose dataset was prepared.
_ENDED_WELL = frozenset(_OUTCOMES)
_HAS_MANIFEST = frozenset(
    (JobState.PREPARED, JobState.SUBMITTING, JobState.RUNNING, JobState.GATING, JobState.HELD)
)

# What the bucket does not contain, and what to do about it.
_NOT_RESTORED = (
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
    """Collected while the bucket is read. `repaired`: what was changed to be whole; `left_out`: folders without a record."""

    damaged: list[Damage] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def damage(self, what: str, why: str, so: str) -> None:
        """Add a finding, once."""
        found = Damage(what, why, so)
        if found not in self.damaged:
            self.damaged.append(found)


@dataclass
class Rebuild:
    """One rebuild. `report` receives progress messages."""

    store: ObjectStore
    verify: Verify
    signing_key: Ed25519PrivateKey | None
    now: datetime
    report: Callable[[str], None]
    findings: Findings = field(default_factory=Findings)
    # The highest position in any record; None without records.
    _position: int | None = None
    _tables: Tables = field(default_factory=lambda: {table.name: [] for table in REBUILT})
    _models: dict[str, Row] = field(default_factory=dict)
    # By job, versions that jobs of the models made, without those that a branch has from its source.
    _made: dict[str, VersionManifest] = field(default_factory=dict)
    # The same by the dataset that they learned.
    _learned: dict[str, VersionManifest] = field(default_factory=dict)
    _checked: dict[tuple[str, FileEntry], str | None] = field(default_factory=dict)

    def read(self) -> Tables:
        """All rows, read from the bucket. Raises Conflict if it has no record."""
        names = sorted(self._recorded("model") | set(self.store.folders(layout.models())))
        for number, name in enumerate(names, start=1):
            self.report(f"model {number} of {len(names)}: {name}")
            record = self._record("model", name)
            if record is None:
                so = "it is left out; its folder is never removed"
                self.findings.damage(f"model {name!r}", "it has no record", so)
            else:
                self._add_model(name, record)
        self.report("datasets")
        self._add_datasets()
        tables, uri = self._tables, self.store.uri
        if not tables["models"]:
            raise Conflict(f"no records of models under {uri}: is CMCL_STORE_URI correct?")
        jobs = {job["id"] for job in tables["jobs"]}
        for version in tables["versions"]:
            # Its dataset may have been left out; lineage and certificates still count.
            version["job"] = version["job"] if version["job"] in jobs else None
        for name in ("datasets", "jobs"):
            tables[name] = _in_order(tables[name])
        tables["api_keys"] = self._keys()
        return tables

    def fill(self, database: Database, tables: Tables) -> None:
        """Insert all rows or none. Raises Conflict unless the database is empty and unused."""
        with database.write() as connection:
            _check_is_free(connection, self.now)
            backup.fill(connection, tables, self._position)

    # The bucket.

    def _recorded(self, kind: Kind) -> set[str]:
        """Names that have a record of this kind."""
        prefix = key_of(kind, "").removesuffix(".json")
        return {key.removeprefix(prefix).removesuffix(".json") for key in self.store.keys(prefix)}

    def _record(self, kind: Kind, name: str) -> Tables | None:
        """The rows of a record; None if missing or damaged. Raises Conflict for one of a newer release."""
        key = key_of(kind, name)
        try:
            found = decode(self.store.read(key), kind, name)
        except ObjectNotFound:
            return None
        except DamagedRecord as error:
            so = (
                "restore an earlier version of this object, and rebuild into another empty database"
            )
            self.findings.damage(f"record {key}", str(error), so)
            return None
        self._position = max(self._position or 0, found.position)
        return found.tables

    def _parsed(
        self, key: str, parse: Callable[[bytes], ManifestT]
    ) -> tuple[ManifestT | None, str]:
        """A manifest and an empty text; or None and why there is none."""
        try:
            return parse(self.store.read(key)), ""
        except ObjectNotFound:
            return None, f"{key} is missing"
        except InvalidVersion as error:
            return None, str(error)

    def _problem(self, key: str, entry: FileEntry) -> str | None:
        """Why an object does not match its entry, or None. Each object is checked once."""
        if (key, entry) not in self._checked:
            problem = None
            try:
                if self.verify == "full":
                    check_object(self.store, key, entry)
                elif (size := self.store.size(key)) != entry.bytes:
                    problem = f"{key} has {size} bytes, its manifest says {entry.bytes}"
            except ObjectNotFound:
                problem = f"{key} is missing"
            except InvalidVersion as error:
                problem = str(error)
            self._checked[key, entry] = problem
        return self._checked[key, entry]

    # Models.

    def _add_model(self, name: str, record: Tables) -> None:
        """Add a model with its versions and promotions."""
        (model,) = record["models"]
        recorded = {each["number"]: each for each in record["versions"]}
        folders = self.store.folders(f"{layout.model_prefix(name)}versions/")
        named = {int(folder) for folder in folders if folder.isdecimal()}
        versions: dict[int, Row] = {}
        for number in sorted(named | recorded.keys() | set(range(1, model["head"] + 1))):
            row = self._version(model, number, recorded.get(number, {}))
            if row is not None:
                versions[number] = row
        model["head"] = max(model["head"], *versions, 0)
        # live.json is written again when the service starts.
        model |= {"lease_owner": None, "written_revision": 0}
        if versions:
            # Fixed by a dataset that may be newer than the record.
            model["encoders"] = versions[max(versions)]["manifest"]["encoders"] | model["encoders"]
        if model["deleted_at"] is None:
            self._follow_pointer(model, versions, record["promotions"])
        self._models[name] = model
        self._tables["models"].append(model)
        self._tables["versions"] += versions.values()
        self._tables["promotions"] += record["promotions"]
        # Those without a dataset, which merge versions of other models.
        self._add_jobs(map(self._change, record["jobs"]), record["attempts"])

    def _version(self, model: Row, number: int, known: Row) -> Row | None:
        """The row of a version; None without a manifest. `known`: its row in the record, or nothing."""
        name, is_swept = model["name"], known.get("swept_at") is not None
        manifest, problem = self._manifest(name, number, known.get("manifest_sha256"))
        if manifest is None and known and known["stored_at"] is None:
            # It was published and not stored yet: the service will store it.
            manifest = self._unstored(model, known)
        if manifest is not None:
            own = () if is_swept else manifest.own.values()
            problems = (self._problem(layout.blob(entry.sha256), entry) for entry in own)
            problem = next(filter(None, problems), "")
        if problem and not model["deleted_at"]:
            so = "it can no longer be live"
            if number >= model["head"]:
                so += ", and the model cannot learn further: branch it from an earlier version"
            self.findings.damage(f"version {number} of {name!r}", problem, so)
        if manifest is None:
            return None
        is_own = manifest.copied_from is None
        if is_own:
            self._made[manifest.job] = manifest
            if manifest.new_line is not None:
                self._learned[manifest.new_line.dataset] = manifest
        unusable_since = self.now if problem or is_swept else None
        return {
            "model": name,
            "number": number,
            "job": manifest.job if is_own else None,
            "attempt": manifest.attempt,
            "parent": manifest.parent,
            **from_manifest(manifest),
            "created_at": known.get("created_at", manifest.created_at),
            # Without it, the service stores the manifest again, and makes the version live.
            "stored_at": known.get("stored_at"),
            "retired_at": known.get("retired_at") or unusable_since,
            "swept_at": known.get("swept_at"),
        }

    def _manifest(
        self, model: str, number: int, sha256: str | None
    ) -> tuple[VersionManifest | None, str]:
        """The manifest, or the reason why there is none."""
        key = layout.version_manifest(model, number)
        manifest, problem = self._parsed(key, lambda data: parse_manifest(data, key))
        if manifest is not None and sha256 not in (None, digest_of_manifest(manifest)):
            problem = f"{key} is not what was recorded (SHA-256)"
        return None if problem else manifest, problem

    def _unstored(self, model: Row, known: Row) -> VersionManifest | None:
        """The manifest of a version that was not stored yet, from its attempt or the model that was branched."""
        try:
            if known["job"] is not None:
                return read_candidate(self.store, known["job"], known["attempt"])
            if model["branched_from"]:
                origin = model["branched_from"]["model"]
                return read_version(self.store, origin, known["number"]).as_in_branch(model["name"])
        except WorkerError as error:
            if error.retry_can_help:
                raise
        return None

    def _follow_pointer(self, model: Row, versions: dict[int, Row], promotions: list[Row]) -> None:
        """Adopt what is newer in live.json, then ensure that the live version can be served. `versions`: by number."""
        try:
            live = read_live(self.store, model["name"])
        except InvalidVersion as error:
            so, live = "the record says which version is live", None
            self.findings.damage(f"live.json of {model['name']!r}", str(error), so)
        if live is not None and live.order > (model["live_generation"], model["live_revision"]):
            self._adopt(live, model, versions, promotions)
        rows = versions.items()
        usable = [number for number, row in rows if row["stored_at"] and not row["retired_at"]]
        if model["live_version"] in (None, *usable):
            return
        if not usable:
            model["live_version"] = None
            return
        why = f"version {model['live_version']} cannot"
        self.findings.repaired.append(f"version {max(usable)} of {model['name']!r} is live: {why}")
        generation = model["live_generation"] + 1
        promotions.append(self._promote(model, max(usable), generation, f"rebuilt: {why}"))
        model["live_revision"] += 1

    def _adopt(
        self, live: LivePointer, model: Row, versions: dict[int, Row], promotions: list[Row]
    ) -> None:
        """Adopt a newer live.json."""
        if live.generation > model["live_generation"]:
            reason = "rebuilt from live.json"
            promotions.append(self._promote(model, live.version, live.generation, reason))
        model["live_revision"] = max(model["live_revision"], live.revision)
        for number, row in versions.items():
            if number in live.retired:
                row["retired_at"] = row["retired_at"] or self.now
            if number <= live.version:
                # Stored before live.json was written; that may not have been recorded in time.
                row["stored_at"] = row["stored_at"] or self.now

    def _promote(self, model: Row, version: int, generation: int, reason: str) -> Row:
        """Make a version live, and return the row of its promotion."""
        assert generation > model["live_generation"]
        promotion = {
            "model": model["name"],
            "generation": generation,
            "version": version,
            "previous": model["live_version"],
            "kind": "promoted",
            "returns_to": model["live_generation"] or None,
            "reason": reason,
            "actor": _ACTOR,
            "created_at": self.now,
        }
        model |= {"live_version": version, "live_generation": generation, "revised_at": self.now}
        return promotion

    # Datasets and jobs.

    def _add_datasets(self) -> None:
        """Add all that have a record, and report those without: with damage if a version has learned them."""
        recorded = self._recorded("dataset")
        for name in sorted(recorded):
            record = self._record("dataset", name)
            if record is not None:
                self._add_dataset(name, record)
        for dataset, made in self._learned.items():
            if dataset not in recorded:
                why = (
                    f"version {made.version} of {made.model!r} has learned it, and it has no record"
                )
                so = "it is left out, and later versions cannot be measured on it"
                self.findings.damage(f"dataset {dataset}", why, so)
        folders = set(filter(_FOLDER.match, self.store.folders("datasets/")))
        self.findings.left_out += [
            f"dataset {name} has neither a record nor a version: its folder is removed after a day; post it again"
            for name in sorted(folders - recorded - self._learned.keys())
        ]

    def _add_dataset(self, name: str, record: Tables) -> None:
        """Add a dataset with its jobs."""
        key = layout.dataset_manifest(name)
        manifest, problem = self._parsed(
            key, lambda data: parse_document(data, key, DatasetManifest)
        )
        (row,) = record["datasets"]
        if row["model"] not in self._models:
            so = "it is left out; garbage collection removes its folder after a day"
            self.findings.damage(f"dataset {name}", "no existing model is known for it", so)
            return
        row["manifest"] = manifest and manifest.model_dump(mode="json")
        learned = self._learned.get(name)
        if learned is not None and not record["jobs"]:
            # It was sealed after the record was written.
            row["sealed_at"] = row["sealed_at"] or self.now
            record["jobs"] = [_new_job(row, learned.job)]
        jobs = list(map(self._change, record["jobs"]))
        own = next((job for job in jobs if job["kind"] in READS_ROWS), None)
        if own is not None and manifest is None and own["state"] in _HAS_MANIFEST:
            message = "prepared again: the manifest of its dataset is lost"
            own |= self._moved(own, JobState.QUEUED, message)
        self._check_files(row, own, manifest, problem)
        unlearned = (
            job for job in jobs if job["kind"] == "unlearn" and job["model"] == row["model"]
        )
        if row["deleted_at"] is None and JobState.PUBLISHED in {job["state"] for job in unlearned}:
            row |= {"deleted_at": self.now, "fingerprint": None, "swept_at": None}
        self._tables["datasets"].append(row)
        self._tables["upload_uses"] += record["upload_uses"]
        known = self._tables["uploads"]
        known += [each for each in record["uploads"] if each not in known]
        self._add_jobs(jobs, record["attempts"])

    def _check_files(
        self, row: Row, job: Row | None, manifest: DatasetManifest | None, problem: str
    ) -> None:
        """Report files that are missing or damaged, unless they were deleted on purpose."""
        is_needed = job is not None and job["state"] in _ENDED_WELL
        is_open = job is not None and job["finished_at"] is None
        is_swept = job is not None and job.get("swept_at") is not None and not is_needed
        if row["deleted_at"] or is_swept or self._models[row["model"]]["deleted_at"]:
            return
        so = "its job will fail" if is_open else "later versions cannot be measured on it"
        if manifest is None:
            # One that is not learned yet is prepared again.
            problems: Iterable[str | None] = [problem] if is_needed else []
        else:
            # Ours are held-out rows, and until they are learned, converted and encoded ones.
            ours = f"{self.store.uri}/{layout.dataset_prefix(manifest.dataset)}"
            training = [shard for shard in manifest.shards if shard.uri.startswith(ours)]
            files = [*manifest.evaluation_shards, *(training if is_open else [])]
            problems = map(self._problem_of_shard, files)
        for why in filter(None, problems):
            self.findings.damage(f"dataset {row['id']}", why, so)

    def _problem_of_shard(self, shard: Shard) -> str | None:
        root = f"{self.store.uri}/"
        if not shard.uri.startswith(root):
            return f"{shard.uri} is not under {self.store.uri}"
        entry = FileEntry(sha256=shard.sha256, bytes=shard.bytes)
        return self._problem(shard.uri.removeprefix(root), entry)

    def _change(self, job: Row) -> Row:
        """A job, as far as the store shows that it went on after it was recorded."""
        version = self._made.get(job["id"])
        if version is not None and job["state"] != JobState.PUBLISHED:
            job |= _as_published(version, self.now)
        if job["finished_at"] is None:
            self._skip_used_attempts(job)
        return job

    def _skip_used_attempts(self, job: Row) -> None:
        """Attempt numbers are unique: one assigned after the record was written may be running."""
        found = map(_ATTEMPT.match, self.store.folders(layout.runs_prefix(job["id"])))
        used = max((int(number.group(1)) for number in found if number), default=0)
        if used > job["attempt"]:
            message = f"attempt {used} was lost: the database was rebuilt"
            job |= {"attempt": used, **self._moved(job, JobState.PREPARED, message)}

    def _moved(self, job: Row, state: JobState, message: str) -> Row:
        return {
            "state": state,
            "message": message,
            "revision": job["revision"] + 1,
            "state_changed_at": self.now,
        }

    def _add_jobs(self, jobs: Iterable[Row], attempts: list[Row]) -> None:
        """Add jobs of models that exist, with their attempts. All have ended but the one that a job still waits for."""
        for job in jobs:
            if job["model"] not in self._models:
                continue
            self._tables["jobs"].append(job)
            is_running = job["state"] in (JobState.SUBMITTING, JobState.RUNNING)
            for attempt in (each for each in attempts if each["job"] == job["id"]):
                is_newest = attempt["number"] == job["attempt"]
                if attempt["ended_at"] is None and not (is_running and is_newest):
                    outcome = _OUTCOMES.get(job["state"], "lost") if is_newest else "lost"
                    attempt |= {"ended_at": self.now, "outcome": outcome}
                self._tables["attempts"].append(attempt)

    # Keys.

    def _keys(self) -> list[Row]:
        """Rows of keys, with only the scope `embed`: write access to the bucket must not suffice to create a key."""
        key, snapshot = layout.key_snapshot(), None
        try:
            token = self.store.read(key)
        except ObjectNotFound:
            return []
        why = "CMCL_SNAPSHOT_SIGNING_KEY is not set, so it cannot be verified"
        if self.signing_key is not None:
            snapshot, why = read_signed(token, self.signing_key), "it was not signed with this key"
        if snapshot is None:
            so = "no key is restored; with the signing key, the service writes a key snapshot without them"
            self.findings.damage(key, why, so)
            return []
        return [
            {
                "id": each.id,
                "owner": each.owner or DEFAULT_OWNER,
                "name": each.name,
                "scopes": [Scope.EMBED.value],
                "secret_sha256": each.sha256,
                "created_at": snapshot.issued_at,
                "created_by": _ACTOR,
                "expires_at": each.expires_at,
            }
            for each in snapshot.keys
            if each.id != OPERATOR_KEY
        ]


def _new_job(row: Row, name: str) -> Row:
    """A job without a record, of a dataset that was learned."""
    return {
        "id": name,
        "owner": row["owner"],
        "model": row["model"],
        "kind": "learn",
        "dataset": row["id"],
        "dataset_name": row["name"],
        "dry_run": False,
        "state": JobState.QUEUED,
        "revision": 0,
        "attempt": 0,
        "attempts_before_retry": 0,
        "preparation": 0,
        "cancel_requested": False,
        "created_at": row["created_at"],
        "finished_at": None,
    }


def _as_published(manifest: VersionManifest, now: datetime) -> Row:
    return {
        "state": JobState.PUBLISHED,
        "reason": None,
        "message": None,
        "attempt": manifest.attempt,
        "parent_version": manifest.parent,
        "version": manifest.version,
        "cancel_requested": False,
        "state_changed_at": now,
        "finished_at": now,
    }


def _in_order(rows: list[Row]) -> list[Row]:
    """In order of creation; rows without a recorded position come last."""
    newest = max((row["sequence"] for row in rows if "sequence" in row), default=0)
    unknown = [row for row in rows if "sequence" not in row]
    unknown.sort(key=lambda row: (row["created_at"], row["id"]))
    for number, row in enumerate(unknown, start=newest + 1):
        row["sequence"] = number
    return sorted(rows, key=lambda row: int(row["sequence"]))


def _check_is_free(connection: Connection, now: datetime) -> None:
    """Raises Conflict unless the database is empty and no service uses it."""
    held, filled = backup.holders(connection, now), backup.filled(connection)
    if filled:
        raise Conflict(
            f"the database has rows already ({', '.join(filled)}): a rebuild needs an empty "
            "one; set CMCL_DATABASE_URL to another database, or drop this one"
        )
    if held:
        raise Conflict(
            f"a service uses this database (lease {', '.join(held)}): stop it, and wait until its "
            "leases expire"
        )


def run_rebuild(settings: Settings, options: argparse.Namespace) -> int:
    """Run the command: report on standard output, progress on standard error. Returns the exit status."""
    # Checked before the bucket is read, which may take hours.
    database = None if options.dry_run else _empty_database(settings)
    try:
        rebuild = Rebuild(
            store=open_store(settings.store_uri),
            verify=options.verify,
            signing_key=settings.signing_key(),
            now=utc_now(),
            report=lambda message: print(message, file=sys.stderr, flush=True),
        )
        tables = rebuild.read()
        if database is not None:
            rebuild.fill(database, tables)
    except StorageError as error:
        raise Conflict(f"object storage: {error}; nothing was written to the database") from error
    finally:
        if database is not None:
            database.close()
    findings = rebuild.findings
    report = {
        "dry_run": options.dry_run,
        "rows": {table: len(rows) for table, rows in tables.items()},
        "jobs": dict(sorted(Counter(str(job["state"]) for job in tables["jobs"]).items())),
        "damaged": [vars(damage) for damage in findings.damaged],
        "repaired": findings.repaired,
        "left_out": findings.left_out,
        "not_restored": _NOT_RESTORED,
    }
    print(json.dumps(report) if options.json else "\n".join(_as_text(report)))
    return DAMAGED if findings.damaged else 0


def _as_text(report: dict[str, Any]) -> Iterator[str]:
    """The report as text: counts by table, then the findings."""
    yield "would be restored:" if report["dry_run"] else "restored:"
    states = ", ".join(f"{count} {state}" for state, count in report["jobs"].items())
    for table, number in report["rows"].items():
        yield f"  {table:<12} {number:>7}  {states if table == 'jobs' else ''}".rstrip()
    damaged = [f"{each['what']}: {each['why']}; {each['so']}" for each in report["damaged"]]
    for title, lines in (
        ("damaged, and left out", damaged),
        ("repaired", report["repaired"]),
        ("left out, because not recorded", report["left_out"]),
        ("not restored", report["not_restored"]),
    ):
        if lines:
            yield f"{title}:"
            yield from (f"  {line}" for line in lines)


def _empty_database(settings: Settings) -> Database:
    """Open and upgrade the database."""
    database = open_database(settings.database_url)
    try:
        upgrade(database)
        with database.read() as connection:
            _check_is_free(connection, utc_now())
    except BaseException:
        database.close()
        raise
    return database
