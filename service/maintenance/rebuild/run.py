"""`python -m service admin rebuild`, as its options say."""

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
from service.auth.signing import read_signed, read_signing_key
from service.clock import utc_now
from service.database.engine import Database, open_database
from service.database.migrations import upgrade
from service.database.queries import backup
from service.database.queries.backup import Row, Tables
from service.errors import Conflict
from service.maintenance.rebuild.bucket import NOT_RESTORED, Bucket, Damage, Findings
from service.maintenance.rebuild.datasets import DatasetFolders, FoundDatasets
from service.maintenance.rebuild.models import ACTOR, FoundModel, find_model, names_of_models
from service.principal import DEFAULT_OWNER, Scope
from service.settings import Settings
from workers.storage import layout
from workers.storage.uris import open_store

# Everything else was restored, and somebody must look at what was not.
DAMAGED = 3


Tell = Callable[[str], None]


@dataclass(frozen=True)
class Rebuild:
    """One of them. `tell` hears how it gets on."""

    bucket: Bucket
    signing_key: Ed25519PrivateKey | None
    may_repair: bool
    now: datetime
    tell: Tell

    def look(self) -> Tables:
        """All rows, from the bucket alone. Raises Conflict if there is nothing in it."""
        models = self._models()
        self.tell("datasets")
        found = DatasetFolders(self.bucket, models, self.now).find()
        if not models and not found.datasets:
            uri = self.bucket.store.uri
            raise Conflict(f"nothing of ours lies under {uri}: is CMCL_STORE_URI right?")
        return _tables(list(models.values()), found, find_keys(self.bucket, self.signing_key))

    def fill(self, database: Database, tables: Tables) -> None:
        """All rows or none. Raises Conflict unless the database is empty and nobody works on it."""
        with database.write() as connection:
            check_is_free(connection, self.now)
            backup.fill(connection, tables)
            if self.bucket.position is not None:
                backup.set_position(connection, self.bucket.position)
            # What was assumed is recorded from now on as well.
            backup.enqueue_all(connection)

    def _models(self) -> dict[str, FoundModel]:
        names = names_of_models(self.bucket)
        found: dict[str, FoundModel] = {}
        for number, name in enumerate(names, start=1):
            self.tell(f"model {number} of {len(names)}: {name}")
            model = find_model(self.bucket, name, self.now, may_repair=self.may_repair)
            if model is not None:
                found[name] = model
        return found


def check_is_free(connection: Connection, now: datetime) -> None:
    """Raises Conflict unless the database is empty and nobody works on it."""
    held, filled = backup.holders(connection, now), backup.filled(connection)
    if filled:
        raise Conflict(
            f"the database has rows already ({', '.join(filled)}): a rebuild goes into an empty one "
            "alone; give CMCL_DATABASE_URL another database, or drop this one"
        )
    if held:
        raise Conflict(
            f"a service works on this database (lease {', '.join(held)}): stop it, and wait until its "
            "leases are over"
        )


def _tables(models: Sequence[FoundModel], found: FoundDatasets, keys: list[Row]) -> Tables:
    known = {row["id"] for row in found.jobs}
    versions = [row for model in models for row in model.version_rows]
    for version in versions:
        # Of one whose dataset had to be left out, the ledger and the certificates still count.
        version["job"] = version["job"] if version["job"] in known else None
    return {
        "models": [model.model for model in models],
        "uploads": [found.uploads[name] for name in sorted(found.uploads)],
        "datasets": _in_order(found.datasets),
        "upload_uses": found.uses,
        "jobs": _in_order(found.jobs),
        "versions": versions,
        "promotions": [row for model in models for row in model.promotions],
        "trials": [row for model in models for row in model.trials],
        "api_keys": keys,
    }


def _in_order(rows: list[Row]) -> list[Row]:
    """In the order of their arrival; those of which no record tells it are taken to be the last."""
    newest = max((row["sequence"] for row in rows if "sequence" in row), default=0)
    unknown = [row for row in rows if "sequence" not in row]
    for number, row in enumerate(
        sorted(unknown, key=lambda row: (row["created_at"], row["id"])), start=newest + 1
    ):
        row["sequence"] = number
    return sorted(rows, key=lambda row: int(row["sequence"]))


def as_json(tables: Tables, findings: Findings, *, is_dry: bool) -> Iterator[str]:
    """One line."""
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
    """Counts by table, then whatever somebody should know."""
    yield "would be restored:" if is_dry else "restored:"
    for table, rows in tables.items():
        states = ", ".join(f"{count} {state}" for state, count in _states(tables).items())
        yield f"  {table:<12} {len(rows):>7}  {states if table == 'jobs' else ''}".rstrip()
    yield from _listed("damaged, and left out", [_words(each) for each in findings.damaged])
    yield from _listed("repaired", findings.repaired)
    yield from _listed("assumed, because no record tells", findings.assumed)
    yield from _listed("not restored", NOT_RESTORED)


def _words(damage: Damage) -> str:
    return f"{damage.what}: {damage.why}; {damage.so}"


def _listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line}" for line in lines)


def _states(tables: Tables) -> dict[str, int]:
    return dict(sorted(Counter(str(job["state"]) for job in tables["jobs"]).items()))


def find_keys(bucket: Bucket, signing_key: Ed25519PrivateKey | None) -> list[Row]:
    """Rows of keys with the scope `embed` alone."""
    try:
        token = bucket.store.read(layout.key_snapshot())
    except ObjectNotFound:
        return []
    so = "no key is restored; with the signing key, the service writes a list without them"
    if signing_key is None:
        why = "CMCL_SNAPSHOT_SIGNING_KEY is not set, so it cannot be believed"
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


def carry_out(settings: Settings, options: argparse.Namespace) -> int:
    """The report on standard output, how it gets on on standard error. The exit status."""
    if options.dry_run and options.repair:
        raise Conflict("--repair writes to object storage and --dry-run writes nothing: choose one")
    database = None if options.dry_run else _empty_database(settings)
    try:
        rebuild = _prepared(settings, options)
        tables = rebuild.look()
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
    """With its tables; looked at before the bucket is read, which may take hours."""
    database = open_database(settings.database_url)
    try:
        upgrade(database)
        with database.read() as connection:
            check_is_free(connection, utc_now())
    except BaseException:
        database.close()
        raise
    return database


def _prepared(settings: Settings, options: argparse.Namespace) -> Rebuild:
    pem = settings.snapshot_signing_key
    return Rebuild(
        bucket=Bucket(open_store(settings.store_uri), options.verify),
        signing_key=None if pem is None else read_signing_key(pem.get_secret_value()),
        may_repair=options.repair,
        now=utc_now(),
        tell=lambda words: print(words, file=sys.stderr, flush=True),
    )
