"""A record: rows of the database as one object, with a digest that tells whether it is whole.

A migration that adds a column notes everything, so that it is recorded anew; until that is done, the
column is what a new row has there. An older release refuses records with a column that it lacks:
something would be lost in silence.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from sqlalchemy import Column, Table

from cmcl.contract.modality import Sha256
from service.database.columns import UtcDateTime
from service.database.queries.records import Kind, Row, Tables
from service.database.tables import metadata
from service.errors import Conflict
from workers.storage import layout


class Record(BaseModel):
    """The rows of one model, dataset or version, as of one moment."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    kind: Kind
    name: str
    # Of the newest event then: whoever listens goes on behind it.
    position: int
    # Of the manifest in object storage that belongs to it, byte by byte.
    manifest_sha256: Sha256 | None = None
    tables: dict[str, list[dict[str, JsonValue]]]


class _Sealed(BaseModel):
    """What lies in object storage."""

    sha256: Sha256
    record: dict[str, JsonValue]


class DamagedRecord(Exception):
    """It is not what was written. Says why."""


@dataclass(frozen=True)
class Recorded:
    """A record that was read: rows as the database takes them."""

    tables: Tables
    position: int
    manifest_sha256: str | None

    def rows(self, table: Table) -> list[Row]:
        """Those of one table."""
        return self.tables.get(table.name, [])


def key_of(kind: Kind, name: str) -> str:
    """Where the record lies."""
    if kind == "model":
        return layout.model_record(name)
    if kind == "dataset":
        return layout.dataset_record(name)
    model, _, number = name.rpartition("/")
    return layout.version_record(model, int(number))


def encode_rows(tables: Tables) -> dict[str, list[dict[str, JsonValue]]]:
    """Rows as JSON can say them."""
    return {
        table: [{name: _told(value) for name, value in row.items()} for row in rows]
        for table, rows in tables.items()
    }


def write(record: Record) -> bytes:
    """The record as an object."""
    content = record.model_dump(mode="json")
    return _Sealed(sha256=_digest(content), record=content).model_dump_json().encode()


def read(data: bytes, kind: Kind, name: str) -> Recorded:
    """The record of that very thing. Raises DamagedRecord, and Conflict for a newer release's."""
    found = _opened(data)
    if (found.kind, found.name) != (kind, name):
        raise DamagedRecord(f"it is of {found.kind} {found.name}")
    tables = {
        table: [_row(table, values) for values in rows] for table, rows in found.tables.items()
    }
    return Recorded(tables, found.position, found.manifest_sha256)


def _opened(data: bytes) -> Record:
    try:
        sealed = _Sealed.model_validate_json(data)
        if _digest(sealed.record) != sealed.sha256:
            raise DamagedRecord("it is not what was written (SHA-256)")
        return Record.model_validate(sealed.record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedRecord(f"{where or 'JSON'}: {first['msg']}") from error


def _digest(content: Mapping[str, JsonValue]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _told(value: Any) -> JsonValue:
    told: JsonValue = value.isoformat() if isinstance(value, datetime) else value
    return told


def _row(table: str, values: Mapping[str, JsonValue]) -> Row:
    known = metadata.tables.get(table)
    columns = {} if known is None else {column.name: column for column in known.columns}
    unknown = sorted(values.keys() - columns.keys())
    if unknown:
        raise Conflict(
            f"records were written by a newer release ({table} has no {', '.join(unknown)} here): "
            "rebuild with that one"
        )
    try:
        return {name: _meant(columns[name], value) for name, value in values.items()}
    except (TypeError, ValueError) as error:
        raise DamagedRecord(f"{table}: {error}") from error


def _meant(column: Column[Any], value: JsonValue) -> Any:
    if isinstance(column.type, UtcDateTime) and value is not None:
        return datetime.fromisoformat(str(value))
    return value
