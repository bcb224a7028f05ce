"""Statements of posting a dataset while it holds the writer lock, on both databases."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import event, insert

from cmcl.contract.api.access import Scope
from cmcl.contract.model import ModelSpec
from service.core.errors import Unprocessable
from service.core.principal import Principal
from service.core.settings import Settings
from service.database.engine import Database
from service.database.queries import models
from service.database.tables import uploads
from service.datasets.intake import (
    MOST_SHARDS,
    Intake,
    NewDataset,
    NewShards,
    accept_dataset,
    add_shards,
    check_addresses,
)

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
SPEC = ModelSpec(width=8, modalities={"image": 4, "text": 3})
OURS = Principal("tests", "ours", frozenset(Scope))
ALLOWED = Settings.model_validate({"allowed_prefixes": ("s3://bucket",)})


@contextmanager
def _counted(database: Database) -> Iterator[list[str]]:
    """Every statement sent, in order."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield sent
    event.remove(database.engine, "before_cursor_execute", note)


_UPLOAD = {
    "filename": "x",
    "bytes": 1,
    "state": "complete",
    "file": "0123456789ab",
    "owner": "ours",
    "created_at": NOW,
    "completed_at": NOW,
}


def _make_uploads(database: Database, number: int) -> None:
    rows = [
        {**_UPLOAD, "id": f"up-{index:012x}", "sha256": f"{index:064x}"} for index in range(number)
    ]
    with database.write() as connection:
        connection.execute(insert(uploads), rows)


@pytest.fixture
def posting(database: Database) -> Database:
    """A control plane with one model."""
    with database.write() as connection:
        models.create(connection, "scenes", "ours", SPEC, NOW)
    return database


def _shards(number: int, of_uploads: int) -> list[dict[str, str]]:
    named = [f"upload:up-{index:012x}" for index in range(of_uploads)]
    named += [f"s3://bucket/{index}" for index in range(number - of_uploads)]
    return [{"uri": uri} for uri in named]


def _dataset(shards: list[dict[str, str]], **changes: object) -> NewDataset:
    pair = {"first": "image", "second": "text"}
    body = {"model": "scenes", "name": "one", "pair": pair, "shards": shards, **changes}
    return NewDataset.model_validate(body)


def _post(database: Database, request: NewDataset) -> str:
    intake = Intake.of(OURS, NOW, ALLOWED, request)
    accepted = database.settle(lambda connection: accept_dataset(connection, request, intake))
    return accepted.dataset.id


def test_queries_of_a_post_do_not_grow_with_its_shards(posting: Database) -> None:
    _make_uploads(posting, MOST_SHARDS // 2)
    sent: dict[int, int] = {}
    for number in (10, MOST_SHARDS):
        request = _dataset(_shards(number, number // 2))
        with _counted(posting) as statements:
            _post(posting, request)
        sent[number] = len(statements)
    assert sent[MOST_SHARDS] == sent[10] < 20


def test_queries_of_more_shards_do_not_grow_with_them(posting: Database) -> None:
    _make_uploads(posting, MOST_SHARDS)
    sent: dict[int, int] = {}
    for number in (10, MOST_SHARDS):
        dataset = _post(posting, _dataset([], sealed=False))
        added = NewShards.model_validate({"shards": _shards(number, number)})
        intake = Intake.of(OURS, NOW, ALLOWED, added)
        with _counted(posting) as statements, posting.write() as connection:
            add_shards(connection, dataset, added, intake)
        sent[number] = len(statements)
    assert sent[MOST_SHARDS] == sent[10] < 20


def test_each_shard_that_cannot_be_used_is_named(posting: Database) -> None:
    _make_uploads(posting, 2)
    with posting.write() as connection:
        for name, owner, state in (
            ("up-aaaaaaaaaaaa", "ours", "open"),
            ("up-bbbbbbbbbbbb", "ours", "aborted"),
            ("up-cccccccccccc", "theirs", "complete"),
        ):
            values = {**_UPLOAD, "id": name, "owner": owner, "state": state, "sha256": "f" * 64}
            connection.execute(insert(uploads).values(values))
    uris = [
        *("upload:up-000000000000", "upload:up-aaaaaaaaaaaa", "upload:up-bbbbbbbbbbbb"),
        *("upload:up-cccccccccccc", "upload:up-dddddddddddd", "upload:nonsense"),
        *("s3://bucket/x", "s3://elsewhere/x", "upload:up-000000000000"),
    ]
    request = _dataset([{"uri": uri} for uri in uris])
    with pytest.raises(Unprocessable) as refused:
        _post(posting, request)
    found = {field.field: field.message for field in refused.value.fields}
    assert set(found) == {f"shards[{index}].uri" for index in (1, 2, 3, 4, 5, 7, 8)}
    assert "is open" in found["shards[1].uri"]
    assert "outside" in found["shards[7].uri"]
    assert "named twice" in found["shards[8].uri"]


def test_addresses_are_judged_before_the_transaction(posting: Database, tmp_path: Path) -> None:
    """Later states of the file system are checked when the shard is read."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
    request = _dataset([{"uri": (inside / "folder" / "x.parquet").as_uri()}])
    settings = Settings.model_validate({"allowed_prefixes": (inside.as_uri(),)})
    intake = Intake.of(OURS, NOW, settings, request)
    (inside / "folder").symlink_to(outside)
    with posting.write() as connection:
        check_addresses(connection, request, intake, {})
    later = Intake.of(OURS, NOW, settings, request)
    with posting.write() as connection, pytest.raises(Unprocessable):
        check_addresses(connection, request, later, {})


def test_an_address_that_was_not_judged_is_not_accepted(posting: Database) -> None:
    request = _dataset([{"uri": "s3://bucket/x"}])
    intake = Intake.of(OURS, NOW, ALLOWED, NewShards())
    with posting.write() as connection, pytest.raises(KeyError):
        accept_dataset(connection, request, intake)
