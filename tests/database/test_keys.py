"""Keys on both databases: stored values are read unchanged, and a revocation is final."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cmcl.contract.api.access import Scope
from service.core.errors import WriteConflict
from service.database.engine import Database, Seek
from service.database.queries import keys
from service.database.queries.keys import KeyRow

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
KEY = KeyRow(
    id="key-000000000001",
    owner="lab",
    name="one",
    scopes=frozenset({Scope.READ, Scope.TRAIN}),
    secret_sha256="0" * 64,
    created_at=NOW,
    created_by="operator",
    expires_at=NOW + timedelta(days=1),
)


def read(database: Database) -> KeyRow:
    with database.read() as connection:
        found = keys.find(connection, KEY.id)
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def _one_key(database: Database) -> None:
    with database.write() as connection:
        assert not keys.has_any(connection)
        keys.create(connection, KEY)


def test_a_key_is_read_as_it_was_written(database: Database) -> None:
    assert read(database) == KEY
    with database.read() as connection:
        assert keys.has_any(connection)
        assert keys.digest_of(connection, KEY.id) == KEY.secret_sha256
        assert keys.digest_of(connection, "key-none") is None
        assert keys.find(connection, "key-none") is None


def test_an_id_is_given_once(database: Database) -> None:
    with pytest.raises(WriteConflict), database.write() as connection:
        keys.create(connection, replace(KEY, name="two"))
    assert read(database).name == "one"


def test_pages_are_of_one_owner_or_of_all(database: Database) -> None:
    other = replace(KEY, id="key-000000000002", owner="others")
    with database.write() as connection:
        keys.create(connection, other)
    with database.read() as connection:
        assert keys.page(connection, None, Seek(limit=10)) == [KEY, other]
        assert keys.page(connection, None, Seek(KEY.id, limit=10)) == [other]
        assert keys.page(connection, "lab", Seek(limit=10)) == [KEY]
        assert keys.page(connection, None, Seek(limit=1)) == [KEY]


def test_the_first_revocation_stays(database: Database) -> None:
    for moment in (NOW, NOW + MINUTE):
        with database.write() as connection:
            keys.set_revoked(connection, KEY.id, moment)
    assert read(database).revoked_at == NOW
    assert not read(database).is_valid(NOW)


def test_two_services_write_one_use_a_minute(database: Database) -> None:
    moments = [NOW, NOW + MINUTE / 2, NOW + MINUTE, NOW + MINUTE * 3 / 2]
    seen = []
    for moment in moments:
        with database.write() as connection:
            keys.set_used(connection, KEY.id, moment, moment - MINUTE)
        seen.append(read(database).last_used_at)
    assert seen == [NOW, NOW, NOW + MINUTE, NOW + MINUTE]
