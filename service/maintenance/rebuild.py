"""The command `python -m service admin rebuild`: restores a lost database from object storage."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from cmcl.contract.access import OPERATOR_KEY, SnapshotKey
from cmcl.contract.errors import ObjectNotFound, StorageError
from cmcl.storage import layout
from cmcl.storage.uris import open_store
from service.auth.key_snapshot import read_signed
from service.core.clock import utc_now
from service.core.errors import Conflict
from service.core.principal import DEFAULT_OWNER, Scope
from service.core.setting_values import read_signing_key
from service.core.settings import Settings
from service.database.engine import Database, open_database
from service.database.migrations import upgrade
from service.database.queries import backup
from service.database.queries.backup import Row, Tables
from service.maintenance.rebuild_bucket import NOT_RESTORED, Bucket, Damage, Findings
from service.maintenance.rebuild_datasets import DatasetFolders, FoundDatasets
from service.maintenance.rebuild_models import ACTOR, FoundModel, find_model, names_of_models

# Exit status: restored, except for the damage reported.
DAMAGED = 3


ReportProgress = Callable[[str], None]


@dataclass(frozen=True)
class Rebuild:
    """One rebuild. `report` receives progress messages."""

    bucket: Bucket
    signing_key: Ed25519PrivateKey | None
    may_repair: bool
    now: datetime
    report: ReportProgress

    def read(self) -> Tables:
        """All rows, read from the bucket. Raises Conflict if it has none."""
        models = self._models()
        self.report("datasets")
        found = DatasetFolders(self.bucket, models, self.now).find()
        if not models and not found.datasets:
            uri = self.bucket.store.uri
            raise Conflict(f"no models or datasets under {uri}: is CMCL_STORE_URI correct?")
        return _tables(list(models.values()), found, find_keys(self.bucket, self.signing_key))

    def fill(self, database: Database, tables: Tables) -> None:
        """Insert all rows or none. Raises Conflict unless the database is empty and unused."""
        with database.write() as connection:
            check_is_free(connection, self.now)
            backup.fill(connection, tables)
            if self.bucket.position is not None:
                backup.set_position(connection, self.bucket.position)
            # Assumed values are backed up from now on as well.
            backup.enqueue_all(connection)

    def _models(self) -> dict[str, FoundModel]:
        names = names_of_models(self.bucket)
        found: dict[str, FoundModel] = {}
        for number, name in enumerate(names, start=1):
            self.report(f"model {number} of {len(names)}: {name}")
            model = find_model(self.bucket, name, self.now, may_repair=self.may_repair)
            if model is not None:
                found[name] = model
        return found


def check_is_free(connection: Connection, now: datetime) -> None:
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


def _tables(models: Sequence[FoundModel], found: FoundDatasets, keys: list[Row]) -> Tables:
    known = {row["id"] for row in found.jobs}
    versions = [row for model in models for row in model.version_rows]
    for version in versions:
        # Its dataset may have been left out; lineage and certificates still count.
        version["job"] = version["job"] if version["job"] in known else None
    return {
        "models": [model.model for model in models],
        "uploads": [found.uploads[name] for name in sorted(found.uploads)],
        "datasets": _in_order(found.datasets),
        "upload_uses": found.uses,
        "jobs": _in_order(found.jobs),
        "attempts": found.attempts,
        "versions": versions,
        "promotions": [row for model in models for row in model.promotions],
        "api_keys": keys,
    }


def _in_order(rows: list[Row]) -> list[Row]:
    """In order of creation; rows without a recorded position come last."""
    newest = max((row["sequence"] for row in rows if "sequence" in row), default=0)
    unknown = [row for row in rows if "sequence" not in row]
    for number, row in enumerate(
        sorted(unknown, key=lambda row: (row["created_at"], row["id"])), start=newest + 1
    ):
        row["sequence"] = number
    return sorted(rows, key=lambda row: int(row["sequence"]))


def as_json(tables: Tables, findings: Findings, *, is_dry: bool) -> Iterator[str]:
    """The report as one line of JSON."""
    yield json.dumps(
        {
            "dry_run": is_dry,
            "rows": {table: len(rows) for table, rows in tables.items()},
            "jobs": _states(tables),
            "damaged": [vars(damage) for damage in findings.damaged],
            "repaired": findings.repaired,
            "assumed": findings.assumed,
            "not_restored": NOT_RESTORED,
        }
    )


def as_text(tables: Tables, findings: Findings, *, is_dry: bool) -> Iterator[str]:
    """The report as text: counts by table, then the findings."""
    yield "would be restored:" if is_dry else "restored:"
    for table, rows in tables.items():
        states = ", ".join(f"{count} {state}" for state, count in _states(tables).items())
        yield f"  {table:<12} {len(rows):>7}  {states if table == 'jobs' else ''}".rstrip()
    yield from _listed("damaged, and left out", [_message(each) for each in findings.damaged])
    yield from _listed("repaired", findings.repaired)
    yield from _listed("assumed, because not recorded", findings.assumed)
    yield from _listed("not restored", NOT_RESTORED)


def _message(damage: Damage) -> str:
    return f"{damage.what}: {damage.why}; {damage.so}"


def _listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line}" for line in lines)


def _states(tables: Tables) -> dict[str, int]:
    return dict(sorted(Counter(str(job["state"]) for job in tables["jobs"]).items()))


def find_keys(bucket: Bucket, signing_key: Ed25519PrivateKey | None) -> list[Row]:
    """Rows of keys, with only the scope `embed`."""
    try:
        token = bucket.store.read(layout.key_snapshot())
    except ObjectNotFound:
        return []
    so = "no key is restored; with the signing key, the service writes a key snapshot without them"
    if signing_key is None:
        why = "CMCL_SNAPSHOT_SIGNING_KEY is not set, so it cannot be verified"
        bucket.findings.damage(layout.key_snapshot(), why, so)
        return []
    snapshot = read_signed(token, signing_key)
    if snapshot is None:
        bucket.findings.damage(layout.key_snapshot(), "it was not signed with this key", so)
        return []
    return [
        {**_row(key), "created_at": snapshot.issued_at}
        for key in snapshot.keys
        if key.id != OPERATOR_KEY
    ]


def _row(key: SnapshotKey) -> Row:
    return {
        "id": key.id,
        "owner": key.owner or DEFAULT_OWNER,
        "name": key.name,
        "scopes": [Scope.EMBED.value],
        "secret_sha256": key.sha256,
        "created_by": ACTOR,
        "expires_at": key.expires_at,
        "revoked_at": None,
        "last_used_at": None,
    }


def run_rebuild(settings: Settings, options: argparse.Namespace) -> int:
    """Run the command: report on standard output, progress on standard error. Returns the exit status."""
    if options.dry_run and options.repair:
        raise Conflict("--repair writes to object storage and --dry-run writes nothing: choose one")
    database = None if options.dry_run else _empty_database(settings)
    try:
        rebuild = _rebuild(settings, options)
        tables = rebuild.read()
        if database is not None:
            rebuild.fill(database, tables)
    except StorageError as error:
        raise Conflict(f"object storage: {error}; nothing was written to the database") from error
    finally:
        if database is not None:
            database.close()
    findings = rebuild.bucket.findings
    lines = as_json if options.json else as_text
    print("\n".join(lines(tables, findings, is_dry=options.dry_run)))
    return DAMAGED if findings.damaged else 0


def _empty_database(settings: Settings) -> Database:
    """Open and upgrade the database; checked before the bucket is read, which may take hours."""
    database = open_database(settings.database_url)
    try:
        upgrade(database)
        with database.read() as connection:
            check_is_free(connection, utc_now())
    except BaseException:
        database.close()
        raise
    return database


def _rebuild(settings: Settings, options: argparse.Namespace) -> Rebuild:
    pem = settings.snapshot_signing_key
    return Rebuild(
        bucket=Bucket(open_store(settings.store_uri), options.verify),
        signing_key=None if pem is None else read_signing_key(pem.get_secret_value()),
        may_repair=options.repair,
        now=utc_now(),
        report=lambda message: print(message, file=sys.stderr, flush=True),
    )
