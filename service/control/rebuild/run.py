"""The rebuild from its beginning to its end: look at everything, then write all rows at once.

Nothing is written to the database before the whole bucket was read, and then in one transaction: one
that is cut off leaves the database empty, and can be repeated. The same bucket gives the same rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from service.control.rebuild.bucket import Bucket
from service.control.rebuild.found.datasets import DatasetFolders, FoundDatasets
from service.control.rebuild.found.keys import find_keys
from service.control.rebuild.found.models import FoundModel, find_model, names_of_models
from service.database.engine import Database
from service.database.queries import rebuilding, records
from service.database.queries.records import Row, Tables
from service.errors import Conflict

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
            rebuilding.fill(connection, tables)
            if self.bucket.position is not None:
                rebuilding.set_position(connection, self.bucket.position)
            # What was assumed is recorded from now on as well.
            records.note_everything(connection)

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
    held, filled = rebuilding.holders(connection, now), rebuilding.filled(connection)
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
