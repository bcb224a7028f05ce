"""Keys: created, shown once, revoked, and never with more scopes than their creator."""

import re
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import text

from cmcl.contract.api.access import Scope
from service.auth.authenticator import KeyCache
from service.auth.keys import KeyText, mint
from service.database.queries import keys
from service.database.queries.keys import KeyRow
from tests.fakes.clock import ScriptedClock
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient, secret_of

NEW = {"name": "pipeline", "scopes": ["read", "write"]}


def row(plane: ControlPlane, key: str) -> KeyRow:
    with plane.context.database.read() as connection:
        found = keys.find(connection, key)
    assert found is not None
    return found


def whole_database(plane: ControlPlane) -> str:
    """Every value of every table."""
    with plane.context.database.read() as connection:
        tables = connection.scalars(text("SELECT name FROM sqlite_master WHERE type='table'"))
        return "\n".join(
            str(list(connection.execute(text(f"SELECT * FROM {name}")))) for name in list(tables)
        )


def problem(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    detail: str = response.json()["detail"]
    return detail


def test_a_key_identifies_its_principal(operator: KeyClient) -> None:
    made = operator.make_key("pipeline", ["write", "read"], owner="lab")
    assert re.fullmatch(r"cmcl_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", made["key"])
    assert made["id"] == f"key-{made['key'][5:17]}"
    known = KeyClient(operator.plane, made["key"]).get("/v1/whoami").json()
    assert known == {"name": "pipeline", "owner": "lab", "scopes": ["read", "write"]}
    operators = operator.get("/v1/whoami").json()
    assert (operators["name"], operators["owner"]) == ("operator", None)


def test_its_secret_is_in_no_table(operator: KeyClient) -> None:
    response = operator.post("/v1/keys", json=NEW, headers={"Idempotency-Key": "a"})
    secret = secret_of(response.json()["key"])
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["location"] == f"/v1/keys/{response.json()['id']}"
    assert secret not in whole_database(operator.plane)
    assert row(operator.plane, response.json()["id"]).secret_sha256 in whole_database(
        operator.plane
    )


def test_a_repeated_request_makes_no_second_key_and_shows_none(operator: KeyClient) -> None:
    headers = {"Idempotency-Key": "a"}
    first = operator.post("/v1/keys", json=NEW, headers=headers).json()
    again = operator.post("/v1/keys", json=NEW, headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == {**first, "key": None}
    assert len(operator.get("/v1/keys").json()["items"]) == 1


def test_a_revoked_key_is_refused_and_revoking_twice_is_once(operator: KeyClient) -> None:
    made = operator.make_key()
    key_client = KeyClient(operator.plane, made["key"])
    assert key_client.get("/v1/models").status_code == 200
    for _ in range(2):
        assert operator.request("DELETE", f"/v1/keys/{made['id']}").status_code == 204
        assert problem(key_client.get("/v1/models"), 401)
        operator.plane.clock.advance(1)
    assert row(operator.plane, made["id"]).revoked_at != operator.plane.clock()


def test_unknown_revoked_and_expired_keys_get_the_same_message(operator: KeyClient) -> None:
    plane = operator.plane
    revoked, expired = operator.make_key(), operator.make_key(expires_in_days=1)
    operator.request("DELETE", f"/v1/keys/{revoked['id']}")
    plane.clock.advance(24 * 3600)
    wrong_secret = operator.make_key()["key"][:-3] + "AAA"
    unknown = f"cmcl_{'0' * 12}_{'A' * 43}"
    words = {
        KeyClient(plane, key).get("/v1/models").text
        for key in (revoked["key"], expired["key"], wrong_secret, unknown, "nonsense", "a.b.c")
    }
    assert len(words) == 1


def test_a_key_is_valid_until_the_moment_it_expires(operator: KeyClient) -> None:
    key_client = operator.client_with_key(expires_in_days=1)
    operator.plane.clock.advance(24 * 3600 - 1)
    assert key_client.get("/v1/models").status_code == 200
    operator.plane.clock.advance(1)
    assert problem(key_client.get("/v1/models"), 401)


def test_a_key_that_another_service_revoked_ends_within_seconds(operator: KeyClient) -> None:
    made = operator.make_key()
    key_client = KeyClient(operator.plane, made["key"])
    assert key_client.get("/v1/models").status_code == 200
    with operator.plane.context.database.write() as connection:
        keys.set_revoked(connection, made["id"], operator.plane.clock())
    operator.plane.clock.advance(6)
    assert problem(key_client.get("/v1/models"), 401)


def test_no_key_gives_a_scope_that_it_lacks(operator: KeyClient) -> None:
    key_client = operator.client_with_key(scopes=["admin", "read"])
    response = key_client.post("/v1/keys", json={"name": "x", "scopes": ["read", "train"]})
    assert "cannot grant scopes" in problem(response, 403)
    (error,) = response.json()["errors"]
    assert (error["field"], error["value"]) == ("scopes[1]", "train")
    assert key_client.make_key("x", ["read"])["owner"] == "default"


def test_only_the_operator_makes_keys_for_other_owners(operator: KeyClient) -> None:
    key_client = operator.client_with_key(owner="lab")
    assert key_client.make_key("x")["owner"] == "lab"
    assert key_client.make_key("y", owner="lab")["owner"] == "lab"
    response = key_client.post("/v1/keys", json={**NEW, "owner": "others"})
    assert "'lab'" in problem(response, 403)
    assert operator.make_key("z", owner="others")["owner"] == "others"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "operator"}, "name"),
        ({"name": "reconciler"}, "name"),
        ({"name": "Ünï"}, "name"),
        ({"name": "a" * 49}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes[0]"),
        ({"scopes": "read"}, "scopes"),
        ({"owner": "a b"}, "owner"),
        ({"expires_in_days": 0}, "expires_in_days"),
        ({"secret": "mine"}, "secret"),
    ],
)
def test_a_key_that_cannot_be_is_refused_by_its_field(
    untouched: ControlPlane, change: dict[str, object], field: str
) -> None:
    response = KeyClient(untouched, ADMIN_KEY).post("/v1/keys", json={**NEW, **change})
    problem(response, 422)
    assert response.json()["errors"][0]["field"] == field


def test_last_use_is_written_at_most_once_a_minute(operator: KeyClient) -> None:
    made = operator.make_key()
    key_client = KeyClient(operator.plane, made["key"])
    clock = operator.plane.clock
    assert row(operator.plane, made["id"]).last_used_at is None
    written = []
    for _ in range(8):
        key_client.get("/v1/models")
        written.append(row(operator.plane, made["id"]).last_used_at)
        clock.advance(10)
    begin = clock.now - timedelta(seconds=80)
    assert written == [begin] * 6 + [begin + timedelta(minutes=1)] * 2


def test_the_history_names_the_key(operator: KeyClient) -> None:
    plane = operator.plane
    plane.client = operator.client_with_key("nightly")
    plane.create_model()
    for name in ("one", "two"):
        plane.run_to_end(plane.post_dataset(name))
    assert plane.client.put("/v1/models/scenes/live", json={"version": 1}).status_code == 200
    history = plane.client.get("/v1/models/scenes/promotions").json()["items"]
    assert [promotion["actor"] for promotion in history] == ["reconciler", "reconciler", "nightly"]
    assert ADMIN_KEY not in whole_database(plane)


def record(key: KeyText, clock: ScriptedClock) -> KeyRow:
    return KeyRow(key.id, "lab", "one", frozenset({Scope.READ}), key.digest, clock(), "tests")


def test_a_key_is_known_by_all_of_its_text() -> None:
    clock = ScriptedClock()
    known, key = KeyCache[KeyRow](clock), mint()
    assert known.find(key.id, key.digest) is None
    known.keep(record(key, clock))
    assert known.find(key.id, key.digest) == record(key, clock)
    wrong = replace(key, secret=mint().secret)
    assert known.find(wrong.id, wrong.digest) is None
    assert not known.was_valid(wrong.id, wrong.digest)


def test_the_number_of_cached_keys_is_bounded() -> None:
    clock = ScriptedClock()
    known, keys = KeyCache[KeyRow](clock), [mint() for _ in range(10_002)]
    for key in keys:
        known.keep(record(key, clock))
    assert [known.was_valid(key.id, key.digest) for key in keys[:3]] == [False, False, True]
    assert known.was_valid(keys[-1].id, keys[-1].digest)


def test_use_is_due_once_a_minute_also_when_the_key_was_read_again() -> None:
    clock = ScriptedClock()
    known, key = KeyCache[KeyRow](clock), mint()
    assert not known.is_use_due(key.id)
    due = []
    for _ in range(13):
        known.keep(record(key, clock))
        due.append(known.is_use_due(key.id))
        clock.advance(10)
    assert [index for index, is_due in enumerate(due) if is_due] == [0, 6, 12]
