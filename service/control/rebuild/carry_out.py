"""`python -m service admin rebuild`, as its options say."""

import argparse
import sys

from cmcl.contract.errors import StorageError
from service.clock import utc_now
from service.control.access.signing import read_signing_key
from service.control.rebuild.bucket import Bucket
from service.control.rebuild.report import as_json, as_text
from service.control.rebuild.run import Rebuild, check_is_free
from service.database.engine import Database, open_database
from service.database.migrations import upgrade
from service.errors import Conflict
from service.settings import Settings
from workers.storage.uris import open_store

# Everything else was restored, and somebody must look at what was not.
DAMAGED = 3


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
