"""A record: rows of the database as one object, with a digest that tells whether it is whole.

A newer release may know columns that a record does not have: they are what a new row has there. It
cannot be read by an older release that lacks a column which it has: something would be lost in silence.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from sqlalchemy import Column, Table

from service.database.columns import UtcDateTime
from service.database.queries.records import Kind, Row, Tables
from workers.contract.modality import Sha256
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
    """It is not what was written, or nothing that this release can read. Says why."""


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


def rows(record: Record, table: Table) -> list[Row]:
    """Its rows of that table, as the database takes them. Raises DamagedRecord."""
    return [_row(table, values) for values in record.tables.get(table.name, [])]


def write(record: Record) -> bytes:
    """The record as an object."""
    content = record.model_dump(mode="json")
    return _Sealed(sha256=_digest(content), record=content).model_dump_json().encode()


def read(data: bytes, kind: Kind, name: str) -> Record:
    """The record of that very thing. Raises DamagedRecord."""
    found = _opened(data)
    if (found.kind, found.name) != (kind, name):
        raise DamagedRecord(f"it is of {found.kind} {found.name}")
    return found


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


def _row(table: Table, values: Mapping[str, JsonValue]) -> Row:
    unknown = sorted(values.keys() - {column.name for column in table.columns})
    if unknown:
        raise DamagedRecord(
            f"it was written by a newer release: {table.name} has no {', '.join(unknown)} here"
        )
    try:
        return {name: _meant(table.columns[name], value) for name, value in values.items()}
    except (TypeError, ValueError) as error:
        raise DamagedRecord(f"{table.name}: {error}") from error


def _meant(column: Column[Any], value: JsonValue) -> Any:
    if isinstance(column.type, UtcDateTime) and value is not None:
        return datetime.fromisoformat(str(value))
    return value
